"""A folder for the sockets and logs of our own Ray: short, writable, for this run alone, gone with it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rlserve.errors import PoolError

_MAX_SOCKET_PATH = 103
"""Bytes that the path of a Unix socket may have (107 on Linux)."""
_SOCKET_BYTES = len("/session_2026-11-26_14-33-39_792592_4194304/sockets/plasma_store")
PREFIX = "rlserve-ray-"
"""Of the folder's name."""
_RANDOM_BYTES = 8
_FALLBACK = Path("/tmp")


def make_ray_folder() -> Path:
    """Under TMPDIR, or under /tmp where that is too long for a socket or cannot be written.

    Raises:
        PoolError: neither will do.
    """
    wrong: list[str] = []
    for parent in dict.fromkeys((Path(tempfile.gettempdir()), _FALLBACK)):
        num_bytes = len(os.fsencode(parent)) + 1 + len(PREFIX) + _RANDOM_BYTES + _SOCKET_BYTES
        if num_bytes > _MAX_SOCKET_PATH:
            wrong.append(f"{parent} is too long: sockets below it have {num_bytes} bytes, at most {_MAX_SOCKET_PATH}")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            wrong.append(f"{parent}: {error.strerror}")
    raise PoolError(
        f"no folder for Ray's sockets ({'; '.join(wrong)}): set TMPDIR to a short folder that can be written"
    )


def remove_ray_folder(folder: Path) -> None:
    """Take the folder away; what Ray still writes into it is lost."""
    shutil.rmtree(folder, ignore_errors=True)
