"""A small process that outlives this one: if we are killed, it ends who still writes into our folder and removes it.

The kernel ends Ray's own processes with the driver. Their helpers are left to notice by themselves, and on a busy
machine some hang for a minute. Standard library alone, so that it is up in some milliseconds::

    run ──starts──► guard, waits at a pipe ──"done"──► ends
                                          └─pipe closed without a word─► kills the writers, removes the folder
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_DONE = b"done"
_DEADLINE_S = 30.0
"""For processes that do not go when they are killed, such as those that wait for a disk."""
_POLL_S = 0.05


class FolderGuard:
    """Guards ``folder`` until ``close``, or until this process has gone without it."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the run's process group is not for the guard
        )

    @property
    def pipe(self) -> int:
        """The file descriptor that says, by being closed, that this process has gone."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def close(self) -> None:
        """End the guard; the folder is the caller's to remove."""
        self._process.communicate(_DONE)


def guard(folder: Path) -> None:
    """Wait at standard input; where it ends without a word, clear ``folder``."""
    if sys.stdin.buffer.read() == _DONE:
        return
    deadline_s = time.monotonic() + _DEADLINE_S
    while (writers := writing_processes(folder)) and time.monotonic() < deadline_s:
        for process_id in writers:
            try:
                os.kill(process_id, signal.SIGKILL)
            except ProcessLookupError:  # it ended while we looked
                continue
        time.sleep(_POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def writing_processes(folder: Path) -> list[int]:
    """Processes of ours with a file below ``folder`` open for writing; who only reads, such as a pager, is none."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and any(
                _writes(descriptor, folder) for descriptor in (process / "fd").iterdir()
            ):
                found.append(int(process.name))
        except OSError:  # another user's, or it ended while we looked
            continue
    return found


def _writes(descriptor: Path, folder: Path) -> bool:
    if folder not in Path(os.readlink(descriptor)).parents:
        return False
    information = descriptor.parent.with_name("fdinfo") / descriptor.name
    flags = next(line for line in information.read_text().splitlines() if line.startswith("flags:"))
    return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
