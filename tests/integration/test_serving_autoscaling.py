"""Replicas that come with the load and go with it: real processes, streams that nothing breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from served import SMALL_ENGINE, ServedModel, events, served

ASKED = {"prompt": "12+34=", "max_tokens": 300, "ignore_eos": True, "return_token_ids": True, "stream": True, "seed": 5}
SCALING = (
    "scaling.enabled=true",
    "scaling.max_replicas=2",
    "scaling.targets.load=0.5",
    "scaling.interval_s=0.1",
    "scaling.scale_up_window_s=0",
    "scaling.scale_down_window_s=0.5",
    "scaling.scale_up_cooldown_s=0",
    "scaling.scale_down_cooldown_s=0",
    "engine.max_num_sequences=8",
    "health.suspect_after_s=500",  # replicas are made to stand still here
    "health.lost_after_s=600",
    "health.stuck_after_s=600",
)


async def stream(server: ServedModel, n: int) -> list[list[int]]:
    """All tokens of ``n`` answers."""
    tokens: list[list[int]] = [[] for _ in range(n)]
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=300) as client,
        client.stream("POST", "/v1/completions", json={**ASKED, "n": n}) as response,
    ):
        lines = [line async for line in response.aiter_lines()]
    assert "data: [DONE]" in lines
    for chunk in events(httpx.Response(200, text="\n".join(lines))):
        for choice in chunk["choices"]:
            tokens[choice["index"]] += choice["token_ids"]
    return tokens


async def come_and_go(server: ServedModel, *, is_handed_on: bool) -> None:
    async def wait_for(condition: Callable[[], bool], what: str) -> None:
        await asyncio.to_thread(server.wait_for, condition, what)

    expected = [await stream(server, n) for n in (1, 2)]
    assert [len(tokens) for tokens in expected[1]] == [300, 300]
    assert (server.metric("rlserve:wanted_replicas"), len(server.replica_processes())) == (1, 1)

    # Engines stand still, so that what is under way stays so until the replicas have changed.
    (first,) = server.replica_processes()
    first.suspend()
    clients = [asyncio.create_task(stream(server, 2)) for _ in range(4)]
    await wait_for(lambda: server.metric("rlserve:ready_replicas") == 2, "a second replica is ready")
    assert server.metric("rlserve:wanted_replicas") == 2
    assert any("replicas: 1 -> 2: load asks for" in line for line in server.log)
    assert await stream(server, 1) == expected[0]  # by the second, since the first stands still
    second = server.replica_processes()[1]
    second.suspend()
    last = asyncio.create_task(stream(server, 1))
    await wait_for(lambda: server.metric("rlserve:live_samples") == 9, "the second has a stream, too")

    for client in clients[1:]:
        client.cancel()
    await wait_for(lambda: server.metric("rlserve:ready_replicas") == 1, "one is enough")
    assert server.metric("rlserve:live_samples") == 3
    if is_handed_on:
        await wait_for(lambda: len(server.replica_processes()) == 1, "its stream is not waited for")
    else:
        assert len(server.replica_processes()) == 2
        second.resume()
        assert await last == expected[0]
        await wait_for(lambda: len(server.replica_processes()) == 1, "it has ended with its stream")
    first.resume()
    assert await asyncio.gather(last, clients[0]) == expected
    assert server.replica_processes() == [first]
    assert server.metric("rlserve:wanted_replicas") == 1
    assert server.metric("rlserve:failovers_total") == is_handed_on
    assert server.metric("rlserve:lost_replicas_total") == 0
    assert server.metric("rlserve:scaling_changes_total") == 2
    assert any("replicas: 2 -> 1: load asks for" in line for line in server.log)


@pytest.mark.parametrize(("drain_timeout_s", "is_handed_on"), [(600, False), (0, True)], ids=["ends", "handed_on"])
def test_a_replica_comes_with_the_load_and_goes_with_it(
    tiny_model: Path, drain_timeout_s: int, is_handed_on: bool
) -> None:
    with served(tiny_model, f"scaling.drain_timeout_s={drain_timeout_s}", *SCALING, *SMALL_ENGINE) as server:
        asyncio.run(come_and_go(server, is_handed_on=is_handed_on))
