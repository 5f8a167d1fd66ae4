"""``rlserve init``: a folder with a task of one's own that runs at once, to be changed bit by bit."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from rlserve.errors import UserError

TEMPLATE_SUFFIX = ".template"
DATA_TIMEOUT_S = 60.0
_EXAMPLES = """\
examples:
  rlserve init my-task
  pytest my-task/test_reward.py
  rlserve launch my-task/run.yaml
"""


def run(arguments: Sequence[str]) -> int:
    """Write the folder and say what to do with it."""
    parsed = _parser().parse_args(arguments)
    folder = Path(parsed.folder).expanduser()
    names = write_task(folder)
    shown = shlex.quote(str(folder))
    sys.stdout.write(
        f"a task of your own in {folder}: {', '.join(names)}\n"
        f"  pytest {shown}/test_reward.py\n"
        f"  rlserve launch {shown}/run.yaml\n"
        f"then change it bit by bit: {folder / 'README.md'} says how\n"
    )
    return 0


def write_task(folder: Path) -> list[str]:
    """Fill an empty or new folder; returns the names of its files.

    Raises:
        UserError: there is something in it already, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name a folder that is, or one that is still to be made")
        for name, text in _texts(folder).items():
            (folder / name).write_text(text, encoding="utf-8")
        command = [sys.executable, str(folder / "make_data.py")]
        subprocess.run(command, check=True, capture_output=True, timeout=DATA_TIMEOUT_S)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return sorted(path.name for path in folder.iterdir())


def _texts(folder: Path) -> Mapping[str, str]:
    """The files by name. In YAML a path is quoted as in JSON, which is YAML too."""
    root = folder.absolute()
    values = {
        "name": root.name,
        "shown": shlex.quote(str(folder)),
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
    return parser
