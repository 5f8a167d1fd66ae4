"""Waits between the loops: woken by a change, and ended by a deadline that names who owes what."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from controller_fakes import settled

from rlserve.controller.signal import Signal
from rlserve.errors import DeadlineExceededError


def test_a_wait_ends_when_its_condition_holds_after_a_change() -> None:
    async def scenario() -> None:
        changed, room = Signal(60.0), False
        wait = asyncio.create_task(changed.wait_for(lambda: room, "room"))
        await settled()
        changed.notify()
        await settled()
        assert not wait.done()
        room = True
        changed.notify()
        await wait

    asyncio.run(scenario())


def test_a_wait_in_which_nothing_moves_names_its_culprit() -> None:
    async def scenario() -> None:
        changed = Signal(0.01, situation=lambda: "2 prompt groups are with cpu-b/0")
        with pytest.raises(DeadlineExceededError, match=r"a batch for step 3, and nothing moved .* with cpu-b/0"):
            await changed.wait_for(lambda: False, "a batch for step 3")

    asyncio.run(scenario())


def test_a_wait_lasts_as_long_as_something_moves() -> None:
    async def scenario() -> None:
        numbers = count()
        changed = Signal(0.001, moved=lambda: min(next(numbers), 5))
        with pytest.raises(DeadlineExceededError):
            await changed.wait_for(lambda: False, "nothing")
        assert next(numbers) == 7, "five numbers that grew, and the one that did not"

    asyncio.run(scenario())
