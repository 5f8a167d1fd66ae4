"""Streams that are only counted: on a machine with few processors, a client that parses would be what is measured."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

DONE = b"data: [DONE]"
_READ_BYTES = 2**16
_MOST_BYTES = 2**20
"""More than a whole answer has."""


async def stream_all(host: str, port: int, bodies: Sequence[Mapping[str, Any]], *, wakes: bool = True) -> list[bool]:
    """Have all answered at once; whether each stream came to its end.

    Args:
        wakes: whether the client is woken by each piece, as one is that reads what comes; else by the end of each
            stream alone, as if it ran on another machine.
    """
    return list(await asyncio.gather(*(_stream(host, port, body, wakes) for body in bodies)))


async def _stream(host: str, port: int, body: Mapping[str, Any], wakes: bool) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    if not wakes:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _MOST_BYTES)
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + content)
    tail = b""
    while part := await reader.read(_READ_BYTES):
        tail = (tail + part)[-64:]
    writer.close()
    return DONE in tail
