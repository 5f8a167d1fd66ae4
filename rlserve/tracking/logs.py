"""Where log records go: to ``rlserve.log`` and to the console, beside a live display without tearing it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

FILE_FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"
CONSOLE_FORMAT = "%(levelname)s %(message)s"


@contextmanager
def log_to(log_file: Path, console: Console) -> Iterator[None]:
    """While it lasts, our records from INFO on and the warnings of other libraries go to the file and the console.

    The console must be the one of the progress display, which then draws itself below the records.
    """
    file_handler = logging.FileHandler(log_file, encoding="utf-8")
    file_handler.setFormatter(logging.Formatter(FILE_FORMAT))
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
        return RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S", markup=False)
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter(CONSOLE_FORMAT))
    return handler


def _is_not_of_ray(record: logging.LogRecord) -> bool:
    """Ray's warnings are long, coloured and about Ray: what they mean for a run is said by us."""
    return record.name.split(".")[0] != "ray"


def _is_ours_or_warns(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == "rlserve" or record.levelno >= logging.WARNING
