"""The next trainer group meets while the step goes on, and whoever is lost meanwhile holds nobody up."""

from __future__ import annotations

import asyncio

import pytest
from controller_fakes import BATCH, STEPPED, settled, unfinished
from trainer_group_setting import Setting

from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.pool.base import Joined, Stepped


@pytest.mark.parametrize("change", ["joins", "leaves"])
def test_the_next_group_meets_while_the_step_goes_on_and_is_joined_at_its_end(change: str) -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "d", others=("c",)).formed()
        with unfinished(setting.fleet["a"], "step") as stepped:
            stepping = asyncio.create_task(setting.group.step(BATCH))
            await settled()
            changing = asyncio.create_task(_changed(setting, change))
            await settled()
            members = ("a", "b", "d", "c") if change == "joins" else ("a", "b")
            assert setting.met(members)
            assert not changing.done(), "the step is not over"
            asked = setting.fleet.log.count(("a", "choose_port"))
            stepped.set_result(STEPPED)
            await asyncio.gather(stepping, changing)
        assert setting.group.members == members
        for member in members:
            (joined, *_), (met,) = (
                setting.fleet[member].arguments[method][-1] for method in ("join_training", "meet_trainers")
            )
            assert joined == met
        assert setting.fleet.log.count(("a", "choose_port")) == asked, "nothing but the state is left to be sent"

    asyncio.run(scenario())


async def _changed(setting: Setting, change: str) -> None:
    if change == "joins":
        await setting.group.prepare(("c",))
        await setting.group.add(("c",))
    else:
        assert await setting.group.remove(("d",), on_leaving=lambda: None)


@pytest.mark.parametrize("change", ["joins", "leaves"])
def test_where_a_member_is_lost_after_the_next_group_met_another_is_formed(change: str) -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "d", others=("c",)).formed()
        with unfinished(setting.fleet["a"], "step") as stepped, unfinished(setting.fleet["b"], "step"):
            stepping = asyncio.create_task(setting.group.step(BATCH))
            await settled()
            changing = asyncio.create_task(_changed(setting, change))
            await settled()
            setting.fleet["b"].kill()
            setting.fleet["a"].answers["step"] = Stepped(metrics={"loss": 2.0})
            stepped.set_exception(WorkerFailedError("no answer from rank 1"))
            assert (await stepping).metrics == {"loss": 2.0}
            await changing
        assert setting.lost == ["b"]
        assert setting.group.members == (("a", "d", "c") if change == "joins" else ("a",))
        places = [place for place, *_ in setting.fleet["a"].arguments["join_training"]]
        assert len({place.generation for place in places}) == len(places), "none is formed twice"

    asyncio.run(scenario())


def test_a_worker_in_the_place_of_a_lost_one_has_met_nobody() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        await setting.group.prepare(("b",))
        setting.fleet["b"].kill()
        await setting.fleet.recover(("b",))
        await setting.group.add(("b",))
        ((met,),) = setting.fleet["a"].arguments["meet_trainers"]
        ((joined, *_),) = setting.fleet["b"].arguments["join_training"]
        assert joined.generation > met.generation

    asyncio.run(scenario())


def test_a_group_that_cannot_meet_is_formed_at_the_step_boundary() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        setting.fleet["a"].answers["meet_trainers"] = WorkerFailedError("no port")
        await setting.group.prepare(("b",))
        await setting.group.add(("b",))
        assert setting.group.members == ("a", "b")
        assert [generation for generation, *_ in setting.generations("b")] == [3], (
            "1 was the first group, 2 did not meet"
        )

    asyncio.run(scenario())


def test_one_that_was_ended_while_the_next_group_met_is_waited_for_by_nobody() -> None:
    """As of a stopped trainer, which the heartbeat ends while another leaves."""

    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        a, b = setting.fleet["a"], setting.fleet["b"]
        with unfinished(a, "meet_trainers"), unfinished(b, "meet_trainers"):
            removing = asyncio.create_task(setting.group.remove(("c",), on_leaving=lambda: None))
            await settled()
            setting.fleet.kill("b", "b gives no sign of life")
            assert await removing
        assert setting.lost == ["b"]
        assert setting.group.members == ("a",)
        ((met,),) = a.arguments["meet_trainers"]
        assert a.arguments["break_off_group"] == [(met.generation,)]
        assert setting.generations("a")[-1][1:] == (0, 1)
        assert len(setting.generations("a")) == 3, "alone, with b and c, alone again: it was not to wait for b"

    asyncio.run(scenario())


def test_whoever_waits_for_one_that_is_lost_while_the_group_forms_is_told() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("b",)).formed()
        a, waits = setting.fleet["a"], asyncio.get_running_loop().create_future()

        def told(_: int) -> None:
            a.answers["join_training"] = Joined(num_steps=0)
            waits.set_exception(WorkerFailedError("a member was lost while it formed"))

        a.answers |= {"join_training": waits, "break_off_group": told}
        with unfinished(setting.fleet["b"], "join_training"):
            adding = asyncio.create_task(setting.group.add(("b",)))
            await settled()
            forming = setting.generations("a")[-1][0]
            setting.fleet["b"].kill()
            with pytest.raises(WorkerLostError, match="b: lost while joining"):
                await adding
        assert a.arguments["break_off_group"] == [(forming,)]
        assert setting.group.members == ("a",)
        assert setting.lost == ["b"]

    asyncio.run(scenario())
