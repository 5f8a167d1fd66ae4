"""What changes of the trainers' group cost the training: the time that it was ready and could not go on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from virtual_time import run_virtual

from rlserve.controller.boundary import StepBoundary
from rlserve.controller.clock import RunClock


async def held_by_training(boundary: StepBoundary, after_s: float, seconds: float) -> None:
    await asyncio.sleep(after_s)
    async with boundary.training():
        await asyncio.sleep(seconds)


async def held_by_a_change(boundary: StepBoundary, after_s: float, seconds: float) -> None:
    await asyncio.sleep(after_s)
    async with boundary.change():
        await asyncio.sleep(seconds)


@pytest.mark.parametrize(
    ("training", "changes", "pause_s"),
    [
        # (after, for) seconds
        ((0.0, 5.0), [(1.0, 2.0)], 0.0),  # the change waits for the step, and nothing for the change
        ((1.0, 5.0), [(0.0, 4.0)], 3.0),
        ((5.0, 5.0), [(0.0, 4.0)], 0.0),
        ((1.0, 5.0), [(0.0, 4.0), (2.0, 6.0)], 3.0),  # the second comes after the step that waits
    ],
)
def test_only_time_counts_in_which_training_was_ready(
    training: tuple[float, float], changes: list[tuple[float, float]], pause_s: float
) -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        boundary = StepBoundary(RunClock(started=loop.time(), read=loop.time))
        work: list[Coroutine[Any, Any, None]] = [held_by_a_change(boundary, *change) for change in changes]
        await asyncio.gather(*work, held_by_training(boundary, *training))
        return boundary.pause_s

    assert run_virtual(scenario()) == pytest.approx(pause_s)


def test_a_step_that_is_given_up_while_it_waits_costs_nothing_more() -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        boundary = StepBoundary(RunClock(started=loop.time(), read=loop.time))
        change = asyncio.create_task(held_by_a_change(boundary, 0.0, 4.0))
        step = asyncio.create_task(held_by_training(boundary, 1.0, 5.0))
        await asyncio.sleep(2.0)
        step.cancel()
        await asyncio.gather(change, step, return_exceptions=True)
        return boundary.pause_s

    assert run_virtual(scenario()) == 0.0
