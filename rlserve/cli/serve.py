"""``rlserve serve``: a model behind OpenAI's API."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.cli.places import DEFAULT_OUTPUT_DIR
from rlserve.errors import UserError
from rlserve.serving.packages import missing_packages

if TYPE_CHECKING:
    from rlserve.serving.config import ServeConfig

DEFAULT_CONFIG = "conf/serve.yaml"
_USAGE = "rlserve serve MODEL [key=value ...]\n       rlserve serve conf/serve.yaml [key=value ...]"
_EXAMPLES = """\
examples:
  rlserve serve builtin:addition                  a small model that rlserve makes itself
  rlserve serve /my/model num_replicas=2 port=8001
  rlserve serve latest                            the newest checkpoint of the newest run
  rlserve serve conf/serve.yaml model.path=/my/model engine.max_num_sequences=64
  rlserve serve /my/model host=0.0.0.0 access.keys_file=keys.txt

then, from another terminal:
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
       -d '{"prompt": "407+86=", "max_tokens": 64}'
"""


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal ends it."""
    parsed = _parser().parse_intermixed_args(arguments)
    source, overrides = _separate(parsed.model, parsed.overrides)
    if missing := missing_packages():
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'rlserve[serve]'")
    from rlserve.config.serving import load_serving

    config = load_serving(source, overrides)
    from rlserve.json_log import ProcessFields, log_to_stderr

    log_to_stderr(config.log_format, ProcessFields())
    from rlserve.serving.server import serve

    with _model_folder(config, parsed.output_dir) as folder:
        return serve(config, folder)


def _separate(first: str, rest: Sequence[str]) -> tuple[str, list[str]]:
    """The configuration and the overrides, of a configuration's path or a model's."""
    if first.endswith((".yaml", ".yml")):
        return first, list(rest)
    if "=" in first and not Path(first).exists():
        return DEFAULT_CONFIG, [first, *rest]
    return DEFAULT_CONFIG, [f"model.path={first}", *rest]


@contextmanager
def _model_folder(config: ServeConfig, output_dir: str) -> Iterator[Path]:
    """The folder of the model: as it is named, of a run's checkpoint, made, or fetched from the hub."""
    from rlserve.cli.checkpoints import find_checkpoint, whole_model
    from rlserve.controller.preparation.model_folder import find_model_folder

    path = config.model.path
    if path.startswith("builtin:"):
        yield Path(find_model_folder(path, logging.getLogger("rlserve").info))
        return
    try:
        checkpoint = find_checkpoint(path, output_dir)
    except UserError:
        if path.count("/") != 1 or Path(path).expanduser().exists():
            raise
        yield Path(find_model_folder(path, logging.getLogger("rlserve").info))
        return
    with whole_model(replace(checkpoint, model_path=checkpoint.model_path.absolute())) as folder:
        yield folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve serve",
        usage=_USAGE,
        description="Serve a model on one or several replicas behind OpenAI's API. docs/serving.md has all settings.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face folder or hub name, a run or one of its checkpoints, builtin:NAME; or a YAML file",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values for the keys of conf/serve.yaml")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    return parser
