"""Log records as JSON, one object a line, with what is known of the process and of the request that they are about.

What a message says is ours to write and holds no text of a client. An exception's own words may quote one, so within a
request its type and its places in the code are told, and not what it says.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

LogFormat = Literal["text", "json"]
TEXT_FORMAT = "%(levelname)s %(message)s"


@dataclass(kw_only=True)
class RequestFields:
    """What is known of a request so far; whoever learns more of it writes it here."""

    request_id: str
    replica: str | None = None
    """Who answers it; several of them with commas between."""
    weight_version: int | None = None
    """That made its last token."""


REQUEST_FIELDS: ContextVar[RequestFields | None] = ContextVar("REQUEST_FIELDS", default=None)
"""Of the request that the current task, or one that it began, works for."""


class ProcessFields:
    """What every record of a process says of it: fields that stay, and those of the moment at which it is written.

    Args:
        fixed: fields that stay.
    """

    def __init__(self, **fixed: Any) -> None:
        self._fixed = fixed
        self.live: Callable[[], Mapping[str, Any]] = dict
        """The others, None for what is not known; called by any thread that logs, so it waits for nothing."""

    def now(self) -> dict[str, Any]:
        """All that are known."""
        return {name: value for name, value in {**self._fixed, **self.live()}.items() if value is not None}


class JsonFormatter(logging.Formatter):
    """
    Args:
        process_fields: of this process.
    """

    def __init__(self, process_fields: ProcessFields) -> None:
        super().__init__()
        self._process_fields = process_fields

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON; fields that are not known are left out."""
        request = REQUEST_FIELDS.get()
        content: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **self._process_fields.now(),
        }
        for source in (vars(request) if request is not None else {}, _extra(record)):
            content |= {name: value for name, value in source.items() if value is not None}
        if record.exc_info and record.exc_info[0] is not None:
            content["exception"] = self._exception(record, is_of_request=request is not None)
        return json.dumps(content, ensure_ascii=False)

    def _exception(self, record: logging.LogRecord, *, is_of_request: bool) -> str:
        assert record.exc_info is not None
        kind, _, frames = record.exc_info
        assert kind is not None
        if not is_of_request:
            return self.formatException(record.exc_info)
        return "".join(traceback.format_tb(frames)) + kind.__qualname__


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says beside its message, of the fields that a request may have."""
    return {name: getattr(record, name, None) for name in RequestFields.__dataclass_fields__}


def create_formatter(log_format: LogFormat, process_fields: ProcessFields, *, text: str) -> logging.Formatter:
    """Of a format: ``text`` is that of lines which people read."""
    return JsonFormatter(process_fields) if log_format == "json" else logging.Formatter(text)


def log_to_stderr(log_format: LogFormat, process_fields: ProcessFields) -> None:
    """Our records from INFO on, and others' warnings, go to standard error, unless records go somewhere already.

    Args:
        process_fields: of this process; lines of text are without them.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(create_formatter(log_format, process_fields, text=TEXT_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])  # nothing where the caller's program has its own
    logging.getLogger("rlserve").setLevel(logging.INFO)
