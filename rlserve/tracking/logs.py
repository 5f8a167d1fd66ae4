"""Where log records go: to ``rlserve.log`` and to the console, beside a live display without tearing it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from rlserve.json_log import LogFormat, ProcessFields, create_formatter

logger = logging.getLogger(__name__)

FILE_FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"
CONSOLE_FORMAT = "%(levelname)s %(message)s"


@contextmanager
def log_to(
    log_file: Path, console: Console, log_format: LogFormat = "text", process_fields: ProcessFields | None = None
) -> Iterator[None]:
    """While it lasts, our records from INFO on and the warnings of other libraries go to the file and the console.

    Args:
        console: the one of the progress display, which then draws itself below the records.
        log_format: of the file.
        process_fields: what each line of the file says of this process, as JSON.
    """
    file_handler = _LogFile(log_file, encoding="utf-8")
    file_handler.setFormatter(create_formatter(log_format, process_fields or ProcessFields(), text=FILE_FORMAT))
    handlers = (file_handler, _console_handler(console))
    root = logging.getLogger()
    old_level = root.level
    root.setLevel(logging.INFO)
    handlers[1].addFilter(_is_not_of_ray)
    for handler in handlers:
        handler.addFilter(_is_ours_or_warns)
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(old_level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _console_handler(console: Console) -> logging.Handler:
    if console.is_terminal and not console.is_dumb_terminal:
        rich_handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S", markup=False)
        rich_handler.setFormatter(_WithoutTraceback("%(message)s"))
        return rich_handler
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(_WithoutTraceback(CONSOLE_FORMAT))
    return handler


class _WithoutTraceback(logging.Formatter):
    """Tracebacks are for the log file."""

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord({**vars(record), "exc_info": None, "exc_text": None, "stack_info": None})
        return super().format(plain)


class _LogFile(logging.FileHandler):
    """A log file on a disk that may become full: said once, on the console, without a traceback."""

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._failed:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            self._give_up(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what was not written yet cannot be
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            logger.warning("%s cannot be written and is left as it is: %s", self.baseFilename, error.strerror)


def _is_not_of_ray(record: logging.LogRecord) -> bool:
    """Ray's warnings are long, coloured and about Ray: what they mean for a run is said by us."""
    return record.name.split(".")[0] != "ray"


def _is_ours_or_warns(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == "rlserve" or record.levelno >= logging.WARNING
