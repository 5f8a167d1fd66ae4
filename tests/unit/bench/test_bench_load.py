"""When conversations begin, on a clock that jumps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from virtual_time import run_virtual

from rlserve.bench.load.base import Load
from rlserve.bench.load.closed_loop import ClosedLoop
from rlserve.bench.load.open_loop import OpenLoop, RecordedLoad
from rlserve.bench.workloads.base import Conversation, Turn

SERVICE_S = 1.0


def conversations(number: int, arrivals_s: tuple[float, ...] = ()) -> Iterator[Conversation]:
    for index in range(number):
        yield Conversation(turns=(Turn(prompt="a"),), arrival_s=arrivals_s[index] if arrivals_s else None)


def begun(load: Load, waiting: Iterator[Conversation], *, end_s: float = math.inf) -> tuple[list[float], int]:
    """When each began, and the most that were under way; each takes ``SERVICE_S``."""
    times_s: list[float] = []
    under_way = most = 0

    async def hold(number: int, conversation: Conversation, due_s: float) -> None:
        nonlocal under_way, most
        assert number == len(times_s)
        times_s.append(asyncio.get_running_loop().time())
        assert due_s == pytest.approx(times_s[-1])
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(SERVICE_S)
        under_way -= 1

    run_virtual(load.run(waiting, hold, start_s=0.0, end_s=end_s))
    assert under_way == 0
    return times_s, most


def test_a_closed_loop_begins_one_where_another_ends() -> None:
    times_s, most = begun(ClosedLoop(3), conversations(7))
    assert times_s == [0, 0, 0, 1, 1, 1, 2]
    assert most == 3


def test_a_closed_loop_begins_none_after_its_time() -> None:
    times_s, _ = begun(ClosedLoop(2), conversations(100), end_s=2.5)
    assert times_s == [0, 0, 1, 1, 2, 2]


def test_an_open_loop_waits_for_nobody() -> None:
    times_s, most = begun(OpenLoop(rate=10.0, burstiness=math.inf), conversations(20))
    assert times_s == pytest.approx([(index + 1) / 10 for index in range(20)])
    assert most >= 10


def test_an_open_loop_begins_none_after_its_time() -> None:
    times_s, _ = begun(OpenLoop(rate=10.0, burstiness=math.inf), conversations(100), end_s=0.55)
    assert len(times_s) == 5


def test_arrivals_follow_from_the_seed() -> None:
    first, again, other = (begun(OpenLoop(rate=3.0, seed=seed), conversations(9))[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_recording_begins_as_it_was_recorded() -> None:
    times_s, _ = begun(RecordedLoad(1.0), conversations(3, (0.0, 0.25, 4.0)))
    assert times_s == [0.0, 0.25, 4.0]


def test_a_failure_of_the_client_itself_ends_the_load() -> None:
    async def hold(number: int, conversation: Conversation, due_s: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        run_virtual(ClosedLoop(2).run(conversations(2), hold, start_s=0.0, end_s=math.inf))
