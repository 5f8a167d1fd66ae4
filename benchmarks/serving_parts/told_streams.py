"""Streams whose tokens, versions and times are kept."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class ToldStream:
    """What one stream has told so far."""

    token_ids: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Of each token."""
    times_s: list[float] = field(default_factory=list)
    """When each piece came, by ``time.monotonic``."""
    is_ended: bool = False
    """It came to its end."""

    @property
    def longest_gap_s(self) -> float:
        """Between two pieces."""
        return max((end - start for start, end in zip(self.times_s, self.times_s[1:], strict=False)), default=0.0)


async def tell_all(
    host: str, port: int, bodies: Sequence[Mapping[str, Any]], when_begun: Callable[[], None]
) -> list[ToldStream]:
    """Have all answered at once; ``when_begun`` is called, in a thread, as soon as every stream has a token."""
    streams = [ToldStream() for _ in bodies]
    left, begun = len(bodies), asyncio.Event()

    async def follow(stream: ToldStream, body: Mapping[str, Any]) -> None:
        nonlocal left
        async for content in _events(host, port, body):
            (choice,) = content["choices"]
            if not choice["token_ids"]:
                continue
            if not stream.token_ids:
                left -= 1
                if left == 0:
                    begun.set()
            stream.token_ids += choice["token_ids"]
            for version, start, end in choice["weight_versions"]:
                stream.versions += [version] * (end - start)
            stream.times_s.append(time.monotonic())
        stream.is_ended = True

    async def act() -> None:
        await begun.wait()
        await asyncio.to_thread(when_begun)

    acting = asyncio.create_task(act())
    await asyncio.gather(*map(follow, streams, bodies))
    await acting
    return streams


async def _events(host: str, port: int, body: Mapping[str, Any]) -> AsyncIterator[Any]:
    """The contents of a stream's events.

    Raises:
        ConnectionError: it broke off before its end.
    """
    reader, writer = await asyncio.open_connection(host, port)
    content = json.dumps({**body, "stream": True, "return_token_ids": True, "return_weight_versions": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            writer.close()
            return
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))
    raise ConnectionError("a stream broke off")
