"""The trainer group with fake workers: what it asks of whom, and in which order."""

from __future__ import annotations

import asyncio

import pytest
from controller_fakes import BATCH, STEPPED, settled, unfinished
from trainer_group_setting import Setting

from rlserve.controller.resizes import resize_metrics
from rlserve.errors import NonFiniteLossError
from rlserve.pool.base import Joined
from rlserve.trainers import Traffic


def test_only_the_first_of_a_new_group_loads_the_model_and_newcomers_bring_nothing() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        # (loads the model, is a newcomer)
        assert [how for _, *how in setting.fleet["a"].arguments["join_training"]] == [[True, False], [False, False]]
        assert [how for _, *how in setting.fleet["b"].arguments["join_training"]] == [[False, True]]
        assert setting.generations("a") == [(1, 0, 1), (2, 0, 2)]
        assert setting.generations("b") == [(2, 1, 2)]

    asyncio.run(scenario())


def test_a_step_is_timed_without_its_wait_for_a_change_which_counts_as_a_pause() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        with unfinished(setting.fleet["b"], "join_training") as joined:
            adding = asyncio.create_task(setting.group.add(("b",)))
            await settled()
            setting.clock.now_s = 2.0
            with unfinished(setting.fleet["b"], "step") as stepped:
                stepping = asyncio.create_task(setting.group.step(BATCH))
                await settled()
                setting.clock.now_s = 5.0
                joined.set_result(0)
                await settled()
                setting.clock.now_s = 9.0
                stepped.set_result(STEPPED)
                await asyncio.gather(adding, stepping)
            assert (setting.group.pause_s, stepping.result().duration_s) == (3.0, 4.0)

    asyncio.run(scenario())


def test_each_group_has_a_secret_of_its_own_and_stays_on_its_machine() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        first, second = (place.secret for place, *_ in setting.fleet["a"].arguments["join_training"])
        ((place, *_),) = setting.fleet["b"].arguments["join_training"]
        assert place.secret == second != first
        assert len(second) == 64
        assert setting.fleet["a"].arguments["choose_port"] == [(True,), (True,)]

    asyncio.run(scenario())


def test_a_loss_that_is_not_finite_is_the_runs_error() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        for member in ("a", "b"):
            setting.fleet[member].answers["step"] = NonFiniteLossError("step 1 is not finite")
        with pytest.raises(NonFiniteLossError):
            await setting.group.step(BATCH)
        assert setting.lost == []

    asyncio.run(scenario())


def test_the_state_is_another_with_each_step_and_with_nothing_else() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", others=("new",)).formed()
        await setting.group.add(("new",))
        await setting.group.remove(("a",), on_leaving=lambda: None)
        assert setting.group.num_steps == 0
        await setting.group.step(BATCH)
        assert setting.group.num_steps == 1

    asyncio.run(scenario())


def test_a_worker_leaves_at_the_step_boundary() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        with unfinished(setting.fleet["a"], "step") as answer:
            step = asyncio.create_task(setting.group.step(BATCH))
            await settled()
            leaving: list[str] = []
            removal = asyncio.create_task(setting.group.remove(("a",), on_leaving=lambda: leaving.append("a")))
            await settled()
            assert leaving == [], "the step is not done"
            answer.set_result(STEPPED)
            await step
            assert await removal
        assert leaving == ["a"]
        assert setting.group.members == ("b",)
        assert setting.fleet.log[-1] == ("a", "leave_training")

    asyncio.run(scenario())


def test_the_last_member_stays() -> None:
    async def scenario() -> None:
        setting = await Setting("a").formed()
        assert not await setting.group.remove(("a",), on_leaving=lambda: pytest.fail("it must not leave"))
        assert setting.group.members == ("a",)
        assert setting.fleet.log == []

    asyncio.run(scenario())


def test_those_who_stay_train_on_while_the_memory_of_one_that_left_is_freed() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        with unfinished(setting.fleet["b"], "leave_training") as left:
            removing = asyncio.create_task(setting.group.remove(("b",), on_leaving=lambda: None))
            await settled()
            assert (await setting.group.step(BATCH)).metrics == {"loss": 1.0}
            assert not removing.done()
            left.set_result(None)
            assert await removing
        assert setting.group.pause_s == 0.0

    asyncio.run(scenario())


def test_what_a_change_of_the_group_took_is_told_once() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        setting.group.take_resizes()

        def join(*_: object) -> Joined:
            setting.clock.now_s += 0.25
            return Joined(num_steps=0, traffic=Traffic(moved_bytes=8, least_bytes=6))

        setting.fleet["a"].answers["join_training"] = join
        await setting.group.add(("b",))
        await setting.group.remove(("b",), on_leaving=lambda: None)
        resizes = setting.group.take_resizes()
        assert setting.group.take_resizes() == []
        assert resize_metrics(resizes) == {
            "training/resize_s": 0.5,
            "training/resize_moved_bytes": 16,
            "training/resize_least_bytes": 12,
        }
        assert resize_metrics([]) == {}

    asyncio.run(scenario())
