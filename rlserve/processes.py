"""Processes that are started here and must not outlive us. The standard library and psutil alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import psutil

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends, however that comes about. On Linux.

    Args:
        parent: process id of who started this one; if that has ended before this is called, this one ends now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


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
