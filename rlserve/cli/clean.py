"""``rlserve clean``: removes caches and what ended runs left in the temporary folder. Never touches runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from rlserve.cache_folder import cache_folder
from rlserve.errors import UserError
from rlserve.launch.connect.ray_folder import PREFIX as RAY_PREFIX
from rlserve.native.kernels_folder import kernels_folder
from rlserve.pool.fork_server import PREFIX as FORK_PREFIX
from rlserve.tasks.cache import try_lock

Kind = Literal["models", "kernels", "temporary"]
KINDS: dict[Kind, str] = {
    "models": "the built-in models and their data: made anew in about a minute",
    "kernels": "compiled kernels of the engine: compiled anew in about half a minute",
    "temporary": "folders of Ray, of workers and of trials that runs left when they were killed",
}
TEMPORARY_PREFIXES = (RAY_PREFIX, FORK_PREFIX, "rlserve-probe-")
MIN_AGE_S = 600.0
"""Of a temporary folder: the processes of a younger one may still be starting."""
_ENTRY = re.compile(r"[a-z]+-(?:model|data)-[0-9a-f]{16}(?:\.partial)?")
_LAUNCH = re.compile(r"\brlserve(?:/__main__\.py)? launch\b")
"""The command line of a run."""
_EXAMPLES = """\
examples:
  rlserve clean                  lists what there is, and asks
  rlserve clean temporary --yes  only what killed runs left, without asking
  rlserve clean --json           only lists
"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that can be removed."""

    kind: Kind
    path: Path
    size_bytes: int


def run(arguments: Sequence[str]) -> int:
    """List, ask, remove."""
    parsed = _parser().parse_args(arguments)
    unknown = [kind for kind in parsed.kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"nothing is called {unknown[0]!r}; there is {', '.join(KINDS)}")
    kinds, commands = parsed.kinds or list(KINDS), running_commands()
    if any(_LAUNCH.search(command) for command in commands):
        sys.stderr.write("a run is going on: what it may still need (models, kernels) is left alone\n")
        kinds = [kind for kind in kinds if kind == "temporary"]
    items = list(find_items(kinds, commands))
    if parsed.json:
        rows = [{"kind": item.kind, "path": str(item.path), "size_bytes": item.size_bytes} for item in items]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for item in items:
        sys.stdout.write(f"{size(item.size_bytes):>10}  {item.kind:10} {item.path}\n")
    if not items:
        sys.stdout.write("nothing to remove\n")
        return 0
    total = size(sum(item.size_bytes for item in items))
    if not parsed.yes and not _agreed(f"remove all of it, {total}? [y/N] "):
        sys.stdout.write("nothing was removed\n")
        return 0
    failed = [problem for item in items if (problem := remove(item)) is not None]
    sys.stderr.writelines(f"{problem}\n" for problem in failed)
    sys.stdout.write(f"removed {len(items) - len(failed)} of {len(items)}, {total} in all\n")
    return UserError.exit_code if failed else 0


def find_items(kinds: Sequence[str], commands: Sequence[str]) -> Iterator[Item]:
    """What there is of these kinds and is not in use; ``commands`` are those of all processes."""
    if "models" in kinds:
        for path in sorted(cache_folder().glob("*-*-*")):
            if _ENTRY.fullmatch(path.name) and not is_being_made(path):
                yield _item("models", path)
    if "kernels" in kinds:
        for path in sorted(kernels_folder().glob("kernels-*")):
            yield _item("kernels", path)
    if "temporary" in kinds:
        for folder in temporary_folders():
            for path in sorted(path for prefix in TEMPORARY_PREFIXES for path in folder.glob(f"{prefix}*")):
                try:
                    if is_left_behind(path, commands):
                        yield _item("temporary", path)
                except FileNotFoundError:  # a run that ended just now has removed it itself
                    continue


def temporary_folders() -> list[Path]:
    """Where Ray's folders may lie: under TMPDIR, or under /tmp where that would not do."""
    return list(dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp"))))


def is_being_made(entry: Path) -> bool:
    """Whether a process makes this entry of the cache just now: it holds the lock."""
    lock = entry.with_name(entry.name.removesuffix(".partial") + ".lock")
    if not lock.exists():
        return False
    with lock.open("r+") as file:
        return not try_lock(file.fileno())


def is_left_behind(path: Path, commands: Sequence[str], *, now: Callable[[], float] = time.time) -> bool:
    """Whether a temporary folder of ours belongs to no process any more; another user's is not ours to judge."""
    found = path.stat()
    is_old = now() - found.st_mtime > MIN_AGE_S
    return path.is_dir() and found.st_uid == os.getuid() and is_old and not any(str(path) in each for each in commands)


def running_commands() -> list[str]:
    """The command lines of all processes: those of Ray name its folder."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        found.append(" ".join(process.info["cmdline"] or ()))
    return found


def remove(item: Item) -> str | None:
    """Remove it; what was wrong, if it cannot be. Whoever has a file of it open keeps that."""
    try:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    except OSError as error:
        return f"{item.path} cannot be removed: {error.strerror}"
    return None


def size(num_bytes: int) -> str:
    """``512 B``, ``3.2 MB``."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _item(kind: Kind, path: Path) -> Item:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return Item(kind=kind, path=path, size_bytes=sum(file.lstat().st_size for file in files if not file.is_dir()))


def _agreed(question: str) -> bool:
    """
    Raises:
        UserError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UserError("there is nobody to ask: add --yes to remove it, or --json to only list")
    sys.stdout.write(question)
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, KINDS)) + 2
    parser = argparse.ArgumentParser(
        prog="rlserve clean",
        description="Remove what rlserve keeps outside of runs, after showing it with its size and asking. Runs, and "
        "the hub's cache, are never touched; nor is what a living process uses.",
        epilog="kinds:\n" + "".join(f"  {kind:{width}}{what}\n" for kind, what in KINDS.items()) + "\n" + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"only these: {', '.join(KINDS)}")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="only list, as JSON")
    return parser
