"""``rlserve init``: a folder with a task of one's own that runs at once, to be changed bit by bit."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from string import Template

from rlserve.config.locate import packaged_root
from rlserve.errors import UserError

TEMPLATE_SUFFIX = ".template"
DATA_TIMEOUT_S = 60.0
DEFAULT_ALGORITHM = "ppo"
_LEARNING_FROM_DATA = frozenset({"sft", "reward_model"})
_EXAMPLES = """\
examples:
  rlserve init my-task
  rlserve init my-task --algorithm dapo
  pytest my-task/test_reward.py
  rlserve launch my-task/run.yaml
"""


def run(arguments: Sequence[str]) -> int:
    """Write the folder and say what to do with it."""
    parsed = _parser().parse_args(arguments)
    folder = Path(parsed.folder).expanduser()
    names = write_task(folder, parsed.algorithm)
    shown = shlex.quote(str(folder))
    sys.stdout.write(
        f"a task of your own in {folder}: {', '.join(names)}\n"
        f"  pytest {shown}/test_reward.py\n"
        f"  rlserve launch {shown}/run.yaml\n"
        f"then change it bit by bit: {folder / 'README.md'} says how\n"
    )
    return 0


def write_task(folder: Path, algorithm: str = DEFAULT_ALGORITHM) -> list[str]:
    """Fill an empty or new folder; returns the names of its files.

    Raises:
        UserError: there is something in it already, it cannot be written, or there is no such recipe.
    """
    recipe = _recipe(algorithm)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name a folder that is, or one that is still to be made")
        for name, text in _texts(folder, algorithm, recipe).items():
            (folder / name).write_text(text, encoding="utf-8")
        command = [sys.executable, str(folder / "make_data.py")]
        subprocess.run(command, check=True, capture_output=True, timeout=DATA_TIMEOUT_S)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return sorted(path.name for path in folder.iterdir())


def recipes() -> list[str]:
    """Names of the algorithms that a task with a reward can be trained by."""
    found = (path.stem for path in (packaged_root() / "algorithm").glob("*.yaml"))
    return sorted(set(found) - _LEARNING_FROM_DATA)


def _recipe(algorithm: str) -> str:
    """What the file of an algorithm says, each line a comment."""
    if algorithm in _LEARNING_FROM_DATA:
        raise UserError(
            f"--algorithm {algorithm} learns from a data set, and has no reward to write: rlserve launch "
            f"conf/{algorithm}.yaml model.path=/my/model data.path=/my/data.jsonl"
        )
    if algorithm not in recipes():
        near = get_close_matches(algorithm, recipes(), n=1)
        meant = f", did you mean {near[0]}?" if near else ""
        raise UserError(f"--algorithm {algorithm}: there is no such recipe{meant}; there is {', '.join(recipes())}")
    text = (packaged_root() / "algorithm" / f"{algorithm}.yaml").read_text(encoding="utf-8")
    return "\n".join(f"#   {line.removeprefix('# ')}".rstrip() for line in text.splitlines() if "@package" not in line)


def _texts(folder: Path, algorithm: str, recipe: str) -> Mapping[str, str]:
    """The files by name. In YAML a path is quoted as in JSON, which is YAML too."""
    root = folder.absolute()
    values = {
        "name": root.name,
        "shown": shlex.quote(str(folder)),
        "algorithm": algorithm,
        "recipe": recipe,
        "data": json.dumps(str(root / "data.jsonl"), ensure_ascii=False),
        "reward": json.dumps(f"{root / 'reward.py'}:score", ensure_ascii=False),
    }
    templates = sorted(files(__package__).joinpath("template").iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(TEMPLATE_SUFFIX): Template(entry.read_text(encoding="utf-8")).substitute(values)
        for entry in templates
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve init",
        description="Write a folder with a task of your own: data, a reward with its test, and a run that works at "
        "once on two CPU cores.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="an empty folder, or one that is still to be made")
    parser.add_argument(
        "--algorithm",
        metavar="NAME",
        default=DEFAULT_ALGORITHM,
        help=f"the recipe that it is trained by: {', '.join(recipes())} (default: {DEFAULT_ALGORITHM})",
    )
    return parser
