"""``rlserve export``: a checkpoint as a model folder for other programs, and on a hub."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rlserve.cli.checkpoints import Checkpoint, add_checkpoint_argument, find_checkpoint
from rlserve.cli.clean import size
from rlserve.cli.places import DEFAULT_OUTPUT_DIR
from rlserve.controller.checkpoint import MANIFEST_FILE, is_whole
from rlserve.errors import UserError

_EXAMPLES = """\
examples:
  rlserve export latest --to my-model                      the newest checkpoint of the newest run
  rlserve export latest --to my-model --best               the one with the best held-out score
  rlserve export runs/my-run/checkpoints/step_000040 --to my-model --dtype bfloat16
  rlserve export latest --to my-model-int8 --quantise int8
  rlserve export latest --to my-model --push me/my-model --private
"""


def run(arguments: Sequence[str]) -> int:
    """Write the folder, and push it where that is asked for."""
    parsed = _parser().parse_args(arguments)
    if parsed.private and parsed.push is None:
        raise UserError("--private says how a repository is made: name it by --push OWNER/NAME")
    checkpoint = find_checkpoint(parsed.checkpoint, parsed.output_dir, best=parsed.best)
    check_whole(checkpoint)
    # Imported where used: torch takes seconds, and what is wrong with the arguments is told before.
    from rlserve.export.model_folder import export_model

    exported = export_model(
        checkpoint.model_path,
        Path(parsed.to).expanduser().absolute(),
        dtype=parsed.dtype,
        quantisation=parsed.quantise,
    )
    address = None
    if parsed.push is not None:
        from rlserve.export.hub import push_folder

        address = push_folder(exported.folder, parsed.push, private=parsed.private, message=checkpoint.label)
    if parsed.json:
        found = {
            "checkpoint": str(checkpoint.model_path),
            "folder": str(exported.folder),
            "num_parameters": exported.num_parameters,
            "size_bytes": exported.size_bytes,
            "address": address,
        }
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    sys.stdout.write(
        f"{checkpoint.model_path} written to {exported.folder}: {exported.num_parameters:,} parameters, "
        f"{size(exported.size_bytes)}\n"
    )
    if address is not None:
        sys.stdout.write(f"pushed to {address}\n")
    return 0


def check_whole(checkpoint: Checkpoint) -> None:
    """Of a checkpoint, every file must have the bytes that were written; of any other folder nothing is known.

    Raises:
        UserError: it has not.
    """
    step = checkpoint.model_path.parent
    is_sealed = checkpoint.run is not None or (step / MANIFEST_FILE).is_file()
    if is_sealed and not is_whole(step):
        raise UserError(f"{step} is damaged: a file is missing or has other bytes than were written; name an older one")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve export",
        description="Write a checkpoint's policy as a Hugging Face folder, which transformers and vLLM load.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint_argument(parser)
    parser.add_argument("--to", required=True, metavar="DIR", help="the new folder")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights; as they are saved unless said",
    )
    parser.add_argument(
        "--quantise",
        choices=("int8",),
        help="round all products but the head's to 8 bits (compressed-tensors, activations by token)",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository of the hub")
    parser.add_argument("--private", action="store_true", help="make a repository that is new a private one")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    return parser
