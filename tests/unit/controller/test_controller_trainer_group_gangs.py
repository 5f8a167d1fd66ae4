"""Gangs in the trainer group: they join, leave and are lost as one, and training waits a while for one on its way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from controller_fakes import BATCH, STEPPED, settled, unfinished
from trainer_group_setting import Setting

from rlserve.errors import WorkerLostError


async def formed_of_gangs(*gangs: tuple[str, ...], others: tuple[str, ...] = ()) -> Setting:
    setting = Setting(*(slot_id for gang in gangs for slot_id in gang), others=others)
    await setting.group.form(gangs, None)
    setting.fleet.log.clear()
    return setting


def last_place(setting: Setting, slot_id: str) -> Any:
    return setting.fleet[slot_id].arguments["join_training"][-1][0]


def test_a_gang_joins_and_leaves_in_one_group_each() -> None:
    async def scenario() -> None:
        setting = await formed_of_gangs(("a", "b"), others=("c", "d"))
        assert last_place(setting, "a").gang_size == 2
        await setting.group.add(("c", "d"))
        assert setting.group.members == ("a", "b", "c", "d")
        assert [last_place(setting, slot_id).rank for slot_id in "abcd"] == [0, 1, 2, 3]
        assert await setting.group.remove(("a", "b"), on_leaving=lambda: None)
        assert setting.group.members == ("c", "d")
        assert [generation for generation, *_ in setting.generations("d")] == [3, 4], "one group for each change"
        assert [slot_id for slot_id, method in setting.fleet.log if method == "leave_training"] == ["a", "b"]
        assert not await setting.group.remove(("c", "d"), on_leaving=lambda: pytest.fail("the last gang stays"))

    asyncio.run(scenario())


def test_a_gang_that_loses_one_is_lost_as_a_whole_and_reported_once() -> None:
    async def scenario() -> None:
        setting = await formed_of_gangs(("a", "b"), ("c", "d"))
        for lost in ("c", "d"):
            setting.fleet[lost].kill()
        await setting.group.step(BATCH)
        assert setting.group.members == ("a", "b")
        assert setting.lost == ["d"] or setting.lost == ["c"]

    asyncio.run(scenario())


def test_the_mate_of_a_lost_member_is_not_in_the_next_group() -> None:
    async def scenario() -> None:
        setting = await formed_of_gangs(("a", "b"), ("c", "d"))
        setting.fleet["a"].kill()
        await setting.group.step(BATCH)
        assert setting.group.members == ("c", "d")
        assert setting.lost == ["a"]
        assert last_place(setting, "c").gang_size == 2

    asyncio.run(scenario())


def test_the_last_gang_goes_on_with_whoever_is_left_and_is_made_whole_again() -> None:
    async def scenario() -> None:
        setting = await formed_of_gangs(("a", "b"))
        setting.fleet["a"].kill()
        await setting.group.step(BATCH)
        assert setting.group.members == ("b",)
        assert setting.lost == ["a"]
        assert last_place(setting, "b").gang_size == 1
        await setting.fleet.recover(("a",))
        await setting.group.add(("a", "b"))
        assert setting.group.members == ("b", "a")
        assert last_place(setting, "b").gang_size == 2

    asyncio.run(scenario())


def test_the_last_gang_keeps_the_state_where_it_loses_one_while_another_joins() -> None:
    async def scenario() -> None:
        setting = await formed_of_gangs(("a", "b"), others=("c", "d"))
        setting.fleet["a"].kill()
        await setting.group.add(("c", "d"))
        assert setting.group.members == ("b", "c", "d")
        assert setting.lost == ["a"]
        assert last_place(setting, "b").rank == 0
        assert last_place(setting, "b").gang_size == 1

    asyncio.run(scenario())


def test_at_the_end_of_a_step_training_waits_for_a_gang_that_is_nearly_ready() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with unfinished(setting.fleet["a"], "step") as stepped:
            first = asyncio.create_task(setting.group.step(BATCH))
            await settled()
            assert (setting.group.num_tokens, setting.group.step_begin_s) == (3, 0.0)
            adding = asyncio.create_task(setting.group.add_when(ready, ("b",), patience_s=lambda: 60.0))
            await settled()
            stepped.set_result(STEPPED)
            await first
        assert setting.group.step_begin_s is None
        second = asyncio.create_task(setting.group.step(BATCH))
        await settled()
        assert setting.group.members == ("a",)
        ready.set_result(None)
        await asyncio.gather(adding, second)
        assert setting.group.members == ("a", "b")
        assert [method for slot_id, method in setting.fleet.log if slot_id == "b"][-2:] == ["join_training", "step"]

    asyncio.run(scenario())


def test_training_goes_on_without_a_gang_that_takes_too_long_which_joins_later() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asked: list[None] = []
        adding = asyncio.create_task(
            setting.group.add_when(ready, ("b",), patience_s=lambda: asked.append(None) or 0.0)
        )
        await settled()
        await setting.group.step(BATCH)
        await settled()
        assert (setting.group.members, len(asked)) == (("a",), 1)
        ready.set_result(None)
        await adding
        assert (setting.group.members, len(asked)) == (("a", "b"), 2)

    asyncio.run(scenario())


def test_a_gang_that_is_lost_before_it_is_ready_holds_nobody_up() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        adding = asyncio.create_task(setting.group.add_when(ready, ("b",), patience_s=lambda: 60.0))
        await settled()
        ready.set_exception(WorkerLostError("died while it left"))
        with pytest.raises(WorkerLostError, match="died while it left"):
            await adding
        assert (await setting.group.step(BATCH)).metrics == {"loss": 1.0}
        assert setting.group.members == ("a",)

    asyncio.run(scenario())
