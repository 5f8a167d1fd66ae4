"""Folders that a run writes to: whether it can, and how much room there is; and the length of Ray's socket paths."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rlserve.cache_folder import cache_folder
from rlserve.cli.doctor.base import Finding, bad, good, warning
from rlserve.errors import PoolError
from rlserve.launch.connect.ray_folder import make_ray_folder, remove_ray_folder

LITTLE_SPACE_BYTES = 2 << 30
NO_SPACE_BYTES = 200 << 20


def examine_folders() -> Iterator[Finding]:
    """The folders of this machine."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for what, folder in (
        ("working folder", Path.cwd()),
        ("temporary folder", Path(tempfile.gettempdir())),
        ("cache (RLSERVE_CACHE)", cache_folder()),
        ("hub cache (HF_HOME)", hub),
    ):
        yield examine_folder(what, folder)
    yield examine_ray_folder()


def examine_folder(what: str, folder: Path) -> Finding:
    """Whether a folder, or the nearest one above it that is there, can be written and has room."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return bad(what, f"{folder} cannot be written ({error.strerror}): change its rights, or name another")
    room = f"{folder}, {free / 2**30:,.1f} GiB free"
    if free < NO_SPACE_BYTES:
        return bad(what, f"{room}: too little for checkpoints and logs; make room (rlserve clean), or name another")
    return warning(what, f"{room}: little for checkpoints") if free < LITTLE_SPACE_BYTES else good(what, room)


def examine_ray_folder() -> Finding:
    """Whether Ray's sockets can be made: their paths may have about a hundred bytes."""
    try:
        folder = make_ray_folder()
    except PoolError as error:
        return bad("Ray's sockets", str(error))
    remove_ray_folder(folder)
    if folder.parent != Path(tempfile.gettempdir()):
        return warning("Ray's sockets", f"in {folder.parent}: {tempfile.gettempdir()} is too long or cannot be written")
    return good("Ray's sockets", f"in {folder.parent}, whose path is short enough")
