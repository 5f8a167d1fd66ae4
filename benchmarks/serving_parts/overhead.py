"""The same answers from an engine in this process and from a server, in turn."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import ModelShape

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams
from serving_parts.counting_client import stream_all
from serving_parts.server import Server, running_server, served_folder

NUM_STREAMS = 64
NUM_PROMPT_TOKENS = 32
NUM_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds from the first request in to the last token out, and processor time of all that computed. The client has
    processors of its own, or nearly: it is woken by the end of each stream alone."""

    engine_s: float
    server_s: float
    engine_cpu_s: float
    server_cpu_s: float
    """Of front and replica, without the client."""
    front_cpu_s: float
    read_s: float
    """As ``server_s``, with a client on this machine that is woken by each piece."""

    @property
    def overhead(self) -> float:
        """Of the server, as a share of the engine's time."""
        return self.server_s / self.engine_s - 1

    @property
    def cpu_overhead(self) -> float:
        """The same of processor time."""
        return self.server_cpu_s / self.engine_cpu_s - 1


def measure_overhead(shape: ModelShape, cache: Path, num_rounds: int, *overrides: str) -> list[Round]:
    """One round to warm up, and those that count.

    Args:
        overrides: of the server's configuration.
    """
    engine = Engine(served_folder(shape, cache), EngineConfig(device="cpu", deterministic=True))
    with running_server(shape, cache, *overrides) as server:
        return [_round(engine, server, shape, number) for number in range(num_rounds + 1)][1:]


def _round(engine: Engine, server: Server, shape: ModelShape, number: int) -> Round:
    draw = random.Random(number)
    prompts = [[draw.randrange(4, shape.vocab_size) for _ in range(NUM_PROMPT_TOKENS)] for _ in range(NUM_STREAMS)]
    engine_cpu_s, start = time.process_time(), time.perf_counter()
    _generate(engine, prompts, number)
    engine_s = time.perf_counter() - start
    engine_cpu_s = time.process_time() - engine_cpu_s
    bodies: list[dict[str, Any]] = [
        {"prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True, "seed": number}
        for prompt in prompts
    ]
    server_cpu_s, front_cpu_s = server.cpu_s, server.front_cpu_s
    server_s = _stream(server, bodies, wakes=False)
    server_cpu_s, front_cpu_s = server.cpu_s - server_cpu_s, server.front_cpu_s - front_cpu_s
    for body in bodies:
        body["cache_salt"] = "another"  # or the same prompts would be found in the cache
    return Round(
        engine_s=engine_s,
        server_s=server_s,
        engine_cpu_s=engine_cpu_s,
        server_cpu_s=server_cpu_s,
        front_cpu_s=front_cpu_s,
        read_s=_stream(server, bodies, wakes=True),
    )


def _stream(server: Server, bodies: Sequence[Mapping[str, Any]], *, wakes: bool) -> float:
    """Seconds until all have ended."""
    start = time.perf_counter()
    assert all(asyncio.run(stream_all(server.host, server.port, bodies, wakes=wakes))), "a stream broke off"
    return time.perf_counter() - start


def _generate(engine: Engine, prompts: list[list[int]], number: int) -> None:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, seed=number)
    for index, prompt in enumerate(prompts):
        assert engine.add(Request(id=str(index), prompt_token_ids=tuple(prompt), sampling=sampling))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert sum(len(output.samples[0].tokens) for output in outputs) == NUM_STREAMS * NUM_TOKENS
