"""Streams that are only counted: on a machine with few processors, a client that parses would be what is measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

DONE = b"data: [DONE]"
_READ_BYTES = 2**16


async def stream_all(host: str, port: int, bodies: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Have all answered at once; whether each stream came to its end."""
    return list(await asyncio.gather(*(_stream(host, port, body) for body in bodies)))


async def _stream(host: str, port: int, body: Mapping[str, Any]) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
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
