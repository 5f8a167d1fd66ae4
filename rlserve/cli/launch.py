"""``rlserve launch``: start a run, or take one up again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.cli.places import DEFAULT_OUTPUT_DIR
from rlserve.errors import UserError

if TYPE_CHECKING:
    from rlserve.config import LoadedConfig

_LAUNCH_USAGE = "rlserve launch CONFIG [key=value ...] [--dry-run] [--resume RUN | --continue]"
_LAUNCH_EXAMPLES = """\
examples:
  rlserve launch conf/rlhf.yaml
  rlserve launch conf/rlhf.yaml model.path=/my/model data.path=/my/data.jsonl reward.function=my.py:score
  rlserve launch conf/rlhf.yaml pool=two num_steps=20 --dry-run
  rlserve launch --resume latest num_steps=200
"""


def run(arguments: Sequence[str]) -> int:
    """Load a configuration, and show or run it."""
    parsed = _launch_parser().parse_intermixed_args(arguments)
    config_path, overrides = _separate(parsed.config)
    from rlserve.config import load

    folder: Path | None = None
    if parsed.go_on:
        loaded, folder = _load_to_continue(config_path, overrides)
    elif parsed.resume is not None:
        loaded, folder = _load_for_resume(parsed.resume, config_path, overrides)
    elif config_path is not None:
        loaded = load(config_path, overrides)
    else:
        raise UserError(f"name a configuration first: {_LAUNCH_USAGE}")
    if parsed.dry_run:
        _show(loaded)
        return 0
    from rlserve.launch import launch

    return launch(loaded, resume=folder, may_begin=parsed.go_on)


def _launch_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve launch",
        usage=_LAUNCH_USAGE,
        description="Start a run, or take one up again where it stopped.",
        epilog=_LAUNCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG [key=value ...]",
        help="a YAML file, then values for its keys or choices for its groups (pool=two)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the configuration and the split, start nothing"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run: its folder, its name, or latest; it keeps its configuration, CONFIG may be left out",
    )
    parser.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="begin the run, or go on where its folder is there already: for what a scheduler starts again and again; "
        "CONFIG must name the run (name=...)",
    )
    return parser


def _separate(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The configuration's path, if the first word is one, and the overrides."""
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return words[0], list(words[1:])
    return None, list(words)


def _load_for_resume(run: str, config_path: str | None, overrides: Sequence[str]) -> tuple[LoadedConfig, Path]:
    """The saved configuration of a run. A CONFIG named besides says where runs lie; if it differs, we say so."""
    from rlserve.config import load
    from rlserve.config.resume import differing_keys, find_run, load_run

    given = load(config_path) if config_path is not None else None
    folder = find_run(run, given.config.output_dir if given else DEFAULT_OUTPUT_DIR)
    loaded = load_run(folder, overrides)
    if given and (keys := differing_keys(loaded.resolved, given.resolved)):
        sys.stderr.write(f"{folder.name} goes on with its own configuration; {config_path} differs in: ")
        sys.stderr.write(", ".join(keys) + "\n")
    return loaded, folder


def _load_to_continue(config_path: str | None, overrides: Sequence[str]) -> tuple[LoadedConfig, Path | None]:
    """The configuration, and the folder of the run that it names where there is one. An owner of it that is gone may
    count as living for a while: that is waited for."""
    from rlserve.config import load
    from rlserve.config.resume import CONFIG_FILE, load_again
    from rlserve.tracking.owner import wait_until_gone

    if config_path is None:
        raise UserError(f"name a configuration first: {_LAUNCH_USAGE}")
    loaded = load(config_path, overrides)
    if loaded.config.name is None:
        raise UserError("--continue must know which run is meant: say name=...")
    folder = Path(loaded.config.output_dir) / loaded.config.name
    if not (folder / CONFIG_FILE).is_file():
        return loaded, None
    wait_until_gone(folder)
    return load_again(folder, loaded, overrides), folder


def _show(loaded: LoadedConfig) -> None:
    """Print the configuration, then the split, remarks and data as YAML comments: the whole can be saved and
    launched."""
    from rlserve.config import to_yaml
    from rlserve.config.pool_split import render_split
    from rlserve.config.prices import check_prices
    from rlserve.controller.preparation.preview import preview_data

    check_prices(loaded.config)
    data = preview_data(loaded.config)
    sys.stdout.write(to_yaml(loaded.config) + "\n")
    about = [*render_split(loaded.config, loaded.discovered).splitlines(), *map(str, loaded.remarks)]
    for line in (*about, *data.splitlines()):
        sys.stdout.write(f"# {line}".rstrip() + "\n")
