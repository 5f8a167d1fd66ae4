"""The audit log: who asked for what and when, as JSON lines in files that are rotated. Text only if it is asked for."""

from __future__ import annotations

import logging
import queue
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson

from rlserve.errors import UserError
from rlserve.serving.config import AuditConfig
from rlserve.serving.write_failures import WriteFailures


class AuditLog:
    """Takes records without waiting for the disk; :func:`open_audit_log` opens one."""

    def __init__(self, *, has_text: bool) -> None:
        self.has_text = has_text
        """Whether records have the bodies of requests."""
        self.waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def write(self, content: Mapping[str, Any]) -> None:
        """Add a line, with the time of now."""
        line = orjson.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **content}).decode()
        self.waiting.put(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))


class _AuditFile(RotatingFileHandler):
    """Lines that a full disk does not take are lost, and counted; later ones are tried again."""

    def __init__(self, path: Path, config: AuditConfig, failures: WriteFailures) -> None:
        super().__init__(path, maxBytes=config.max_bytes, backupCount=config.num_kept, encoding="utf-8")
        self._failures = failures
        self._has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self._has_failed = False
        super().emit(record)
        if not self._has_failed:
            self._failures.succeeded("audit")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            self._has_failed = True
            self._failures.failed("audit", error)
        else:
            super().handleError(record)


@contextmanager
def open_audit_log(config: AuditConfig, failures: WriteFailures | None = None) -> Iterator[AuditLog | None]:
    """The log while the context is open; what was written is in the file after it. None where none is asked for.

    Raises:
        UserError: the file cannot be written.
    """
    if config.path is None:
        yield None
        return
    path = Path(config.path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        file = _AuditFile(path, config, failures or WriteFailures())
    except OSError as error:
        raise UserError(f"audit.path={path} cannot be written: {error}") from error
    file.setFormatter(logging.Formatter("%(message)s"))
    log = AuditLog(has_text=config.text)
    listener = QueueListener(log.waiting, file)
    listener.start()
    try:
        yield log
    finally:
        listener.stop()
        with suppress(OSError):  # told already, by the line that it did not take
            file.close()
