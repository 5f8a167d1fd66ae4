"""Processes and folders of ours that must not outlive us. The standard library and psutil alone."""

from __future__ import annotations

import ctypes
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_folders: set[Path] = set()


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends, however that comes about. On Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def make_folder(prefix: str, parent: Path) -> Path:
    """A new folder that is ours, and goes with :func:`remove_folder` or, at the latest, :func:`remove_folders`.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    _folders.add(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Take one of :func:`make_folder` away; what somebody still writes into it is lost."""
    shutil.rmtree(folder, ignore_errors=True)
    _folders.discard(folder)


def remove_folders() -> None:
    """Take all that are left away."""
    for folder in tuple(_folders):
        remove_folder(folder)


def descendants() -> list[psutil.Process]:
    """All processes that come from this one."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def processes_naming(text: str) -> list[psutil.Process]:
    """Our children that have ``text`` in their command, with all that come from them."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        try:
            if any(text in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
        except psutil.Error:  # it ended while we looked
            continue
    return found


def end_all(processes: list[psutil.Process], *, grace_s: float = 0.0) -> None:
    """Kill what still lives of ``processes`` after ``grace_s`` seconds, and wait until it is gone."""
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=5.0)
