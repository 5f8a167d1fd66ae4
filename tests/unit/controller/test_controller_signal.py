"""Waits between the loops: woken by a change, and ended, when nothing moves, by a deadline that names who owes what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from controller_fakes import run_context, settled

from rlserve.controller.context import Books
from rlserve.controller.signal import Signal
from rlserve.controller.stall import StallGuard
from rlserve.errors import DeadlineExceededError
from rlserve.manager.gang_table import GangTable
from rlserve.rollout.admission import PromptAdmission
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.ledger import Ledger
from rlserve.rollout.requests.router import Router


def test_a_wait_ends_when_its_condition_holds_after_a_change() -> None:
    async def scenario() -> None:
        changed, room = Signal(), False
        wait = asyncio.create_task(changed.wait_for(lambda: room, "room"))
        await settled()
        changed.notify()
        await settled()
        assert not wait.done()
        assert changed.waiting == ("room",)
        room = True
        changed.notify()
        await wait
        assert changed.waiting == ()

    asyncio.run(scenario())


def test_what_holds_already_is_not_waited_for() -> None:
    asyncio.run(asyncio.wait_for(Signal().wait_for(lambda: True, "nothing"), 1.0))


class Setting:
    """A guard over one live group; who else there is does nothing."""

    def __init__(self) -> None:
        self.context = run_context()
        self.ledger = Ledger(prompts_per_step=1, max_staleness=0)
        self.ledger.admit("0:0", position=0, current_version=0, time_s=0.0)
        self.training = SimpleNamespace(waiting=True)
        self.replicas = SimpleNamespace(num_generated_tokens=0)
        self.reallocation = SimpleNamespace(table=GangTable())
        self.reallocation.table.add("cpu-b/0", time_s=0.0)
        fakes: Any = self
        self.guard = StallGuard(
            self.context,
            Books(
                ledger=self.ledger,
                admission=PromptAdmission(self.ledger, num_groups=None),
                buffer=SampleBuffer(self.ledger, prompts_per_step=1),
                router=Router(),
            ),
            fakes.training,
            fakes.replicas,
            fakes.reallocation,
            timeout_s=0.01,
        )


MESSAGE = r"waiting for a batch, and nothing moved for 0.01 s: prompt groups: 1 pending, .*; slots: cpu-b/0 starting"


def test_a_wait_in_which_nothing_moves_names_who_owes_what() -> None:
    async def scenario() -> None:
        setting = Setting()
        wait = asyncio.create_task(setting.context.changed.wait_for(lambda: False, "a batch"))
        with pytest.raises(DeadlineExceededError, match=MESSAGE):
            await asyncio.wait_for(setting.guard.watch(), 5.0)
        wait.cancel()

    asyncio.run(scenario())


def generate(setting: Setting) -> None:
    setting.replicas.num_generated_tokens += 1


def change(setting: Setting) -> None:
    setting.context.changed.notify()


def start_group(setting: Setting) -> None:
    now_s = asyncio.get_running_loop().time()
    setting.ledger.start("0:0", version=0, time_s=now_s)
    setting.ledger.requeue("0:0", time_s=now_s)


def train(setting: Setting) -> None:
    setting.training.waiting = False


@pytest.mark.parametrize("move", [generate, change, start_group, train])
def test_a_wait_lasts_as_long_as_something_moves(move: Callable[[Setting], None]) -> None:
    async def scenario() -> None:
        setting = Setting()
        wait = asyncio.create_task(setting.context.changed.wait_for(lambda: False, "a batch"))
        guard = asyncio.create_task(setting.guard.watch())
        for _ in range(30):
            move(setting)
            await asyncio.sleep(0.001)
        assert not guard.done()
        wait.cancel()
        guard.cancel()

    asyncio.run(scenario())


def test_where_nobody_waits_nothing_need_move() -> None:
    async def scenario() -> None:
        setting = Setting()
        guard = asyncio.create_task(setting.guard.watch())
        await asyncio.sleep(0.05)
        assert not guard.done()
        guard.cancel()

    asyncio.run(scenario())
