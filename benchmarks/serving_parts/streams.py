"""Many streams at once, wave after wave: errors, and the memory of the front."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from models import ModelShape

from serving_parts.counting_client import stream_all
from serving_parts.server import running_server

NUM_STREAMS = 500
NUM_TOKENS = 100
NUM_WAVES = 4


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What was seen."""

    num_streams: int
    """At once."""
    num_errors: int
    """Streams that did not come to their end, of all waves."""
    front_bytes: tuple[int, ...]
    """Held by the front after each wave."""

    @property
    def growth(self) -> float:
        """Since the first wave, as a share."""
        return self.front_bytes[-1] / self.front_bytes[0] - 1


def measure_streams(shape: ModelShape, cache: Path) -> Streams:
    """Have :data:`NUM_WAVES` waves answered."""
    held, num_errors = [], 0
    body = {"prompt": [5, 6, 7], "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True, "logprobs": 0}
    with running_server(shape, cache, "degradation.refuse_at=100", "degradation.shorten_at=100") as server:
        for _ in range(NUM_WAVES):
            ended = asyncio.run(stream_all(server.host, server.port, [body] * NUM_STREAMS))
            num_errors += ended.count(False)
            held.append(server.front.memory_info().rss)
    return Streams(num_streams=NUM_STREAMS, num_errors=num_errors, front_bytes=tuple(held))
