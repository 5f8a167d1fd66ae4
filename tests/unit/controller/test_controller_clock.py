"""The run's clock: modelled seconds from when it is dilated, without a jump, while deadlines stay those of the host."""

from __future__ import annotations

import asyncio

import pytest
from virtual_time import run_virtual

from rlserve.controller.clock import RunClock


def test_a_dilated_clock_goes_on_at_another_pace() -> None:
    now = [50.0]
    clock = RunClock(started=40.0, already_s=5.0, read=lambda: now[0])
    assert clock.now() == 15.0
    clock.dilate(0.25)
    assert clock.now() == 15.0
    now[0] += 2.0
    assert clock.now() == 23.0
    assert clock.real_s() == 52.0


def test_waits_are_as_long_as_the_clock_says() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        clock = RunClock(started=0.0, read=loop.time)
        clock.dilate(4.0)
        await clock.sleep(2.0)
        assert (clock.now(), loop.time()) == (pytest.approx(2.0), pytest.approx(8.0))

    run_virtual(scenario())
