"""What becomes of a server under requests that nobody should send.

python benchmarks/serving_hostile.py [--requests 10000] [--seed 1] [--json FILE]

Each must get the error that it deserves, which names the parameter that is wrong; now and then a connection is broken
off in the middle of a request. Two engines answer good requests meanwhile, each as it did before. Afterwards the
processes must be the same, and hold no more memory than after the first third.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES
from serving_parts.hostile_requests import NUM_LONG_CHARS, HostileRequest, find_fault, hostile_requests
from serving_parts.server import Server, running_server

MAX_GROWTH = 0.05
NUM_WORKERS = 8
_BREAKS_OFF_EVERY = 20
_GOOD = {"prompt": [5, 6, 7], "max_tokens": 20, "ignore_eos": True, "seed": 3}
_PATIENCE_S = 120.0
_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@dataclass
class Found:
    """So far."""

    num_requests: int = 0
    num_broken_off: int = 0
    num_good: int = 0
    faults: list[str] = field(default_factory=list)
    """Of answers to hostile requests."""
    num_changed: int = 0
    """Good answers that were not what they had been."""


def main() -> int:
    """Measure, print, and write what ``--json`` asks for; 1 where a bar is missed."""
    options = _parser().parse_args()
    with ExitStack() as stack:
        template = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "chat.jinja"
        template.write_text(_TEMPLATE)
        settings = ("num_replicas=2", f"model.chat_template={template}")
        server = stack.enter_context(running_server(SHAPES["tiny"], options.model_cache, *settings))
        found, held = asyncio.run(_attack(server, options.requests, options.seed))
        num_processes_kept = sum(process.is_running() for process in held[0])
        num_processes = len(held[0])
        growth = [after / before - 1 for before, after in zip(held[0].values(), held[1].values(), strict=True)]
    print(
        f"{found.num_requests} hostile requests, {found.num_broken_off} connections broken off, {found.num_good} good "
        "requests; MiB of front and replicas after a third "
        + " ".join(f"{size / 2**20:.0f}" for size in held[0].values())
        + ", at the end "
        + " ".join(f"{size / 2**20:.0f}" for size in held[1].values())
    )
    for fault in found.faults[:20]:
        print(fault)
    name = f"{found.num_requests} hostile requests"
    checks = [
        Check(name=f"{name}: without the error that they deserve", value=len(found.faults), bar=0, at_least=False),
        Check(name=f"{name}: good answers that changed", value=found.num_changed, bar=0, at_least=False),
        Check(name=f"{name}: processes that lived on", value=num_processes_kept, bar=num_processes),
        Check(
            name=f"{name}: growth of memory after the first third", value=max(growth), bar=MAX_GROWTH, at_least=False
        ),
    ]
    for check in checks:
        print(f"{'ok ' if check.met else 'BAD'}  {check.value:.3f}  {check.name}")
    if options.json is not None:
        content: dict[str, Any] = {**circumstances(), "seed": options.seed, "num_good": found.num_good}
        content |= {"num_broken_off": found.num_broken_off, "checks": [check.line() for check in checks]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(check.met for check in checks) else 1


async def _attack(server: Server, num_requests: int, seed: int) -> tuple[Found, list[dict[Any, int]]]:
    """What was found, and the bytes of each process after a third of the requests and at the end."""
    found, held = Found(), []
    requests = islice(hostile_requests(seed), num_requests)
    address = f"http://{server.host}:{server.port}"
    async with httpx.AsyncClient(base_url=address, timeout=_PATIENCE_S) as client:
        while len(server.replicas) < 2 or (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.1)
        # Long texts are tokenised in threads, each of which keeps some memory: all of them have begun afterwards.
        long = {"prompt": "1" * NUM_LONG_CHARS}
        await asyncio.gather(*(client.post("/v1/completions", json=long) for _ in range(64)))
        expected = await _good_answer(client)
        for part in (num_requests // 3, num_requests - num_requests // 3):
            attackers = [_send_all(client, server, islice(requests, share), found) for share in _shares(part)]
            watch = asyncio.create_task(_watch(client, expected, found))
            await asyncio.gather(*attackers)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            held.append({process: process.memory_info().rss for process in (server.front, *server.replicas)})
        found.num_changed += await _good_answer(client) != expected
    return found, held


def _shares(number: int) -> list[int]:
    """Of the workers."""
    return [number // NUM_WORKERS + (worker < number % NUM_WORKERS) for worker in range(NUM_WORKERS)]


async def _send_all(
    client: httpx.AsyncClient, server: Server, requests: Iterator[HostileRequest], found: Found
) -> None:
    for request in requests:
        answer = await send(client, request)
        found.num_requests += 1
        if (fault := find_fault(request, answer.status_code, answer.content)) is not None:
            found.faults.append(f"{request.method} {request.path} {request.body[:160]!r}: {fault}")
        if found.num_requests % _BREAKS_OFF_EVERY == 0:
            await _break_off(server, request)
            found.num_broken_off += 1


async def send(client: httpx.AsyncClient, request: HostileRequest) -> httpx.Response:
    """One request."""
    kind = {"Content-Type": request.content_type} if request.content_type else {}
    headers = {**kind, **request.headers}
    return await client.request(request.method, request.path, content=request.body, headers=headers)


async def _break_off(server: Server, request: HostileRequest) -> None:
    _, writer = await asyncio.open_connection(server.host, server.port)
    head = f"POST {request.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request.body) + 9}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode("ascii", "ignore") + request.body)
    await writer.drain()
    writer.close()


async def _watch(client: httpx.AsyncClient, expected: object, found: Found) -> None:
    """Ask the same again and again."""
    while True:
        found.num_changed += await _good_answer(client) != expected
        found.num_good += 1
        await asyncio.sleep(0.02)


async def _good_answer(client: httpx.AsyncClient) -> object:
    return (await client.post("/v1/completions", json=_GOOD)).json().get("choices")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/serving_hostile.py", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
