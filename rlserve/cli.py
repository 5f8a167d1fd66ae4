"""The command line. Reads arguments and prints; all work is done elsewhere, and imported when it is needed.

Exit codes: 0 done, 1 the run failed, 2 something that the user can mend (one clear message, no traceback),
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve import __version__
from rlserve.errors import RlserveError, UserError

if TYPE_CHECKING:
    from rlserve.config import LoadedConfig

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
DEFAULT_OUTPUT_DIR = "runs"

_LAUNCH_USAGE = "rlserve launch CONFIG [key=value ...] [--dry-run] [--resume RUN]"
_LAUNCH_EXAMPLES = """\
examples:
  rlserve launch conf/rlhf.yaml
  rlserve launch conf/rlhf.yaml model.path=/my/model data.path=/my/data.jsonl reward.function=my.py:score
  rlserve launch conf/rlhf.yaml pool=two num_steps=20 --dry-run
  rlserve launch --resume latest num_steps=200
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="rlserve",
        description="Reinforcement learning of language models that shares one pool of GPUs between training and "
        "rollout.",
        epilog="rlserve COMMAND --help says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"rlserve {__version__}")
    parser.add_argument("command", choices=sorted(COMMANDS), help="launch: start a run, or take one up again")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    try:
        exit_code = COMMANDS[parsed.command](parsed.arguments)
        sys.stdout.flush()
        return exit_code
    except RlserveError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def launch_command(arguments: Sequence[str]) -> int:
    """``rlserve launch``: load a configuration, and show or run it."""
    parsed = _launch_parser().parse_intermixed_args(arguments)
    config_path, overrides = _separate(parsed.config)
    from rlserve.config import load
    from rlserve.pool.discovery import discover_machine

    discovered = discover_machine()
    run: Path | None = None
    if parsed.resume is not None:
        loaded, run = _load_for_resume(parsed.resume, config_path, overrides, discovered)
    elif config_path is not None:
        loaded = load(config_path, overrides, discovered=discovered)
    else:
        raise UserError(f"name a configuration first: {_LAUNCH_USAGE}")
    if parsed.dry_run:
        _show(loaded, discovered)
        return 0
    from rlserve.launch import launch

    return launch(loaded, resume=run)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"launch": launch_command}


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
    return parser


def _separate(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The configuration's path, if the first word is one, and the overrides."""
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return words[0], list(words[1:])
    return None, list(words)


def _load_for_resume(
    run: str, config_path: str | None, overrides: Sequence[str], discovered: Mapping[str, int]
) -> tuple[LoadedConfig, Path]:
    """The saved configuration of a run. A CONFIG named besides says where runs lie; if it differs, we say so."""
    from rlserve.config import load
    from rlserve.config.resume import differing_keys, find_run, load_run

    given = load(config_path, discovered=discovered) if config_path is not None else None
    folder = find_run(run, given.config.output_dir if given else DEFAULT_OUTPUT_DIR)
    loaded = load_run(folder, overrides, discovered=discovered)
    if given and (keys := differing_keys(loaded.resolved, given.resolved)):
        sys.stderr.write(f"{folder.name} goes on with its own configuration; {config_path} differs in: ")
        sys.stderr.write(", ".join(keys) + "\n")
    return loaded, folder


def _show(loaded: LoadedConfig, discovered: Mapping[str, int]) -> None:
    """Print the configuration, and the split as YAML comments: the whole can be saved and launched."""
    from rlserve.config import to_yaml
    from rlserve.config.split import render_split

    sys.stdout.write(to_yaml(loaded.config) + "\n")
    for line in render_split(loaded.config, discovered).splitlines():
        sys.stdout.write(f"# {line}\n")
