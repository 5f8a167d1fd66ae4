"""What share of the prompts' tokens is cached, by how a server with several replicas chooses among them.

python benchmarks/serving_routing.py [--replicas 2 4] [--conversations 32] [--turns 6] [--json FILE]

Conversations of several turns, many at a time: each turn's prompt is all that was said before, and something new. The
same ones go to a server with consistent hash, with round robin and with least load, one after the other. What could be
cached is what was said before, in whole blocks: with that the shares are compared. They are read from ``usage`` of the
answers, and each replica's from ``/metrics``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import argparse
import asyncio
import json
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import httpx
from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES
from serving_parts.server import Server, running_server

POLICIES = ("consistent_hash", "round_robin", "least_load")
BLOCK_SIZE = 16
NUM_NEW_TOKENS = 64
"""That a person adds in each turn."""
NUM_ANSWER_TOKENS = 16
NUM_AT_ONCE = 8
"""Conversations that go on at the same time."""
_FIRST_TOKEN = 10
_READY_S = 120.0
_BEAT_S = 1.0
"""After which /metrics tells of all answers."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a server with one policy told."""

    policy: str
    num_replicas: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_cachable_tokens: int
    """Said before, in whole blocks."""
    hit_rates: Mapping[str, float]
    """Of each replica's prefix cache, from ``/metrics``."""
    turn_s: float
    """Median time of a turn."""
    cpu_s: float
    """Of the server's processes."""

    @property
    def cached_share(self) -> float:
        """Of the prompts' tokens."""
        return self.num_cached_tokens / self.num_prompt_tokens

    @property
    def of_possible(self) -> float:
        """Of the tokens that could be cached."""
        return self.num_cached_tokens / self.num_cachable_tokens


@dataclass(kw_only=True)
class _Counts:
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_cachable_tokens: int = 0
    turns_s: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what ``--json`` asks for; 1 where a bar is missed."""
    options = _parser().parse_args(arguments)
    told = [_measure(policy, num_replicas, options) for num_replicas in options.replicas for policy in POLICIES]
    for each in told:
        rates = ", ".join(f"{name}: {rate:.0%}" for name, rate in sorted(each.hit_rates.items()))
        print(
            f"{each.num_replicas} replicas, {each.policy}: {each.cached_share:.1%} of the prompts' tokens cached, "
            f"{each.of_possible:.1%} of what could be; by replica {rates}; {each.turn_s:.3f} s a turn, "
            f"{each.cpu_s:.1f} processor seconds"
        )
    checks = list(judge(told))
    for check in checks:
        print(f"{'ok ' if check.met else 'BAD'}  {check.value:.3f}  {check.name}")
    if options.json is not None:
        content = {**circumstances(), "load_average": os.getloadavg()[0], "model": options.model}
        content["results"] = [{**asdict(each), "cached_share": each.cached_share} for each in told]
        content["checks"] = [check.line() for check in checks]
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(check.met for check in checks) else 1


def judge(told: Sequence[Told]) -> Iterator[Check]:
    """The shares against what is possible, and against each other."""
    for num_replicas in sorted({each.num_replicas for each in told}):
        by_policy = {each.policy: each for each in told if each.num_replicas == num_replicas}
        hashed, others = by_policy["consistent_hash"], [by_policy[name] for name in POLICIES[1:]]
        name = f"{num_replicas} replicas, consistent hash: cached share"
        yield Check(name=f"{name} of what could be cached", value=hashed.of_possible, bar=0.9)
        best = max(each.cached_share for each in others)
        yield Check(name=f"{name} less the best of the others", value=hashed.cached_share - best, bar=0.1)


def _measure(policy: str, num_replicas: int, options: argparse.Namespace) -> Told:
    overrides = (f"num_replicas={num_replicas}", f"routing.policy={policy}", f"engine.block_size={BLOCK_SIZE}")
    with running_server(SHAPES[options.model], options.model_cache, *overrides) as server:
        before_s, counts, rates = asyncio.run(_talk(server, num_replicas, options))
        return Told(
            policy=policy,
            num_replicas=num_replicas,
            num_prompt_tokens=counts.num_prompt_tokens,
            num_cached_tokens=counts.num_cached_tokens,
            num_cachable_tokens=counts.num_cachable_tokens,
            hit_rates=rates,
            turn_s=median(counts.turns_s),
            cpu_s=server.cpu_s - before_s,
        )


async def _talk(
    server: Server, num_replicas: int, options: argparse.Namespace
) -> tuple[float, _Counts, Mapping[str, float]]:
    """All conversations, and the processor time before them."""
    counts, places = _Counts(), asyncio.Semaphore(NUM_AT_ONCE)
    async with httpx.AsyncClient(base_url=f"http://{server.host}:{server.port}", timeout=300) as client:
        await _wait_for(client, num_replicas)
        before_s = server.cpu_s
        async with asyncio.TaskGroup() as tasks:
            for number in range(options.conversations):
                tasks.create_task(_converse(client, places, counts, number, options))
        await asyncio.sleep(_BEAT_S)
        text = (await client.get("/metrics")).text
    return before_s, counts, _hit_rates(text)


async def _converse(
    client: httpx.AsyncClient, places: asyncio.Semaphore, counts: _Counts, number: int, options: argparse.Namespace
) -> None:
    chance = random.Random(f"{options.seed} {number}")
    said: list[int] = []
    for _ in range(options.turns):
        num_said = len(said)
        said += [chance.randrange(_FIRST_TOKEN, SHAPES[options.model].vocab_size) for _ in range(NUM_NEW_TOKENS)]
        body = {"prompt": said, "max_tokens": NUM_ANSWER_TOKENS, "ignore_eos": True, "return_token_ids": True}
        async with places:
            began_s = time.perf_counter()
            answer = await client.post("/v1/completions", json=body)
            counts.turns_s.append(time.perf_counter() - began_s)
        told = answer.raise_for_status().json()
        counts.num_prompt_tokens += told["usage"]["prompt_tokens"]
        counts.num_cached_tokens += told["usage"]["prompt_tokens_details"]["cached_tokens"]
        # The last token of an answer was drawn, but its keys and values were never computed.
        counts.num_cachable_tokens += max(num_said - 1, 0) // BLOCK_SIZE * BLOCK_SIZE
        said += told["choices"][0]["token_ids"]


async def _wait_for(client: httpx.AsyncClient, num_replicas: int) -> None:
    deadline = time.monotonic() + _READY_S
    while f"rlserve:ready_replicas {num_replicas:.1f}" not in (await client.get("/metrics")).text:
        if time.monotonic() > deadline:
            raise SystemExit(f"not all of {num_replicas} replicas are ready after {_READY_S:g} s")
        await asyncio.sleep(0.1)


def _hit_rates(text: str) -> dict[str, float]:
    """By replica."""
    found = {
        name: dict(
            re.findall(rf'^vllm:prefix_cache_{name}_total{{[^}}]*engine="([^"]*)"[^}}]*}} (\S+)$', text, re.MULTILINE)
        )
        for name in ("hits", "queries")
    }
    return {
        engine: float(found["hits"][engine]) / float(num_queries)
        for engine, num_queries in found["queries"].items()
        if float(num_queries)
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/serving_routing.py", description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--model", choices=sorted(SHAPES), default="6m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
