"""Where a reward's prints and log records go: into the run's ``logs/reward.log``, line by line."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_FORMAT = "%(levelname)s %(name)s: %(message)s"


def redirect_output(log_path: Path, *, name: str) -> None:
    """From now on what this process prints and logs goes to ``log_path``, each line behind the time and ``name``.

    What its libraries and child processes write to the standard streams lands there too, as it is.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for standard_stream in (1, 2):
        os.dup2(log, standard_stream)
    sys.stdout = _text(MarkedLines(log, name))
    sys.stderr = _text(MarkedLines(log, name))
    logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stderr, force=True)


class MarkedLines(io.RawIOBase):
    """A binary stream that writes whole lines, each in one system call, so that processes can share a file."""

    def __init__(self, file_descriptor: int, name: str) -> None:
        """``name`` stands behind the time at the beginning of each line."""
        super().__init__()
        self.name = name
        self._file_descriptor = file_descriptor
        self._unfinished = b""
        self._num_lost = 0
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file_descriptor

    def write(self, data: Any) -> int:
        with self._lock:
            *lines, self._unfinished = (self._unfinished + bytes(data)).split(b"\n")
            self._put(lines)
        return len(data)

    def flush(self) -> None:
        """An unfinished line becomes a line."""
        with self._lock:
            lines, self._unfinished = [self._unfinished] if self._unfinished else [], b""
            self._put(lines)

    def _put(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._num_lost:
            lines = [b"(%d lines are missing: they could not be written)" % self._num_lost, *lines]
        mark = f"{time.strftime('%H:%M:%S')} {self.name} ".encode()
        try:
            os.write(self._file_descriptor, b"".join(mark + line + b"\n" for line in lines))
        except OSError:  # a full disk: what a reward prints must not decide whether it can score
            self._num_lost += len(lines) - bool(self._num_lost)
        else:
            self._num_lost = 0


def _text(stream: MarkedLines) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", write_through=True)
