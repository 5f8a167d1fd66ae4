"""What the controller and a process with environments send each other: pickled, each behind its length."""

from __future__ import annotations

import asyncio
import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn, Reply

_LENGTH = struct.Struct("!Q")

Action = Literal["reset", "step", "truncate", "close"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """Something that an environment is to do. Several calls are under way at once, one of each environment."""

    id: int
    session: int
    """Number of the environment, unique in its process; ``reset`` makes it."""
    action: Action
    argument: EnvironmentTask | ModelTurn | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a call."""

    call_id: int
    reply: Reply | None = None
    """To a ``step`` or a ``truncate``."""
    error: str | None = None
    """What the environment did wrong: names it and the sample."""
    duration_s: float = 0.0


def packed(message: Any) -> bytes:
    """The bytes of a message."""
    content = pickle.dumps(message)
    return _LENGTH.pack(len(content)) + content


def read_from(stream: BinaryIO) -> Any:
    """The next message.

    Raises:
        EOFError: there is none.
    """
    (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size))
    return pickle.loads(_read_exactly(stream, length))


async def receive_from(stream: asyncio.StreamReader) -> Any:
    """The next message.

    Raises:
        asyncio.IncompleteReadError, ConnectionError: the other process has ended.
    """
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    return pickle.loads(await stream.readexactly(length))


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
