"""The trainer group with fake workers: what it asks of whom, in which order, whoever is lost when."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from controller_fakes import FakeClock, FakeFleet, recorded, run_context, settled, unfinished

from rlserve.controller.events import WorkerLost
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import NonFiniteLossError, StateLostError, WorkerFailedError, WorkerLostError, WriterLostError
from rlserve.manager.roles import Role

BATCH: Any = SimpleNamespace(token_ids=(1, 2, 3))


class Setting:
    """A group of ``slot_ids`` that has been formed."""

    def __init__(self, *slot_ids: str, others: tuple[str, ...] = ()) -> None:
        self.fleet = FakeFleet((*slot_ids, *others))
        self.clock = FakeClock(0.0)
        context = run_context(clock=self.clock)
        self.losses = recorded(context.events, WorkerLost)
        fleet: Any = self.fleet
        self.group = TrainerGroup(
            context,
            fleet,
            switch_timeout_s=5.0,
            step_timeout_s=5.0,
            on_one_machine=True,
        )
        self.slot_ids = slot_ids

    @property
    def lost(self) -> list[str]:
        assert all(loss.role is Role.TRAIN for loss in self.losses)
        return [loss.slot_id for loss in self.losses]

    async def formed(self) -> Setting:
        await self.group.form([(slot_id,) for slot_id in self.slot_ids], None)
        self.fleet.log.clear()
        return self

    def met(self, members: tuple[str, ...]) -> bool:
        """Whether these, in order of rank, were asked to form their next group."""
        places = [self.fleet[member].arguments.get("meet_trainers", [(None,)])[-1][0] for member in members]
        return [place and (place.rank, place.num_ranks) for place in places] == [
            (rank, len(members)) for rank in range(len(members))
        ]

    def generations(self, slot_id: str) -> list[tuple[int, int, int]]:
        """(generation, rank, world size) of each group that a worker was asked to join."""
        calls = self.fleet[slot_id].arguments.get("join_training", [])
        return [(place.generation, place.rank, place.num_ranks) for place, *_ in calls]


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
                stepped.set_result({"loss": 1.0})
                await asyncio.gather(adding, stepping)
        assert (setting.group.pause_s, setting.group.step_s) == (3.0, 4.0)

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


def test_a_lost_member_breaks_a_step_that_the_survivors_do_again() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        broken = WorkerFailedError("all-gather failed, no answer from rank 0")
        setting.fleet["a"].kill()
        for survivor in ("b", "c"):
            answers = iter([broken, {"loss": 2.0}])
            setting.fleet[survivor].answers["step"] = lambda batch, answers=answers: _raised(next(answers))
        assert await setting.group.step(BATCH) == {"loss": 2.0}
        assert setting.lost == ["a"]
        assert setting.group.members == ("b", "c")
        calls = [call for call in setting.fleet.log if call[0] == "b" and call[1] != "info"]
        assert [method for _, method in calls] == ["step", "choose_port", "join_training", "step"]
        assert setting.generations("b")[-1] == (3, 0, 2)

    asyncio.run(scenario())


def _raised(found: Any) -> Any:
    if isinstance(found, Exception):
        raise found
    return found


def test_a_step_that_a_survivor_had_completed_is_not_done_again() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        setting.fleet["a"].kill()
        for survivor in ("b", "c"):
            setting.fleet[survivor].answers |= {
                "step": WorkerFailedError("all-gather failed, no answer from rank 0"),
                "join_training": 1,
                "last_metrics": {"loss": 3.0},
            }
        assert await setting.group.step(BATCH) == {"loss": 3.0}
        assert setting.group.members == ("b", "c")
        methods = [method for slot_id, method in setting.fleet.log if slot_id == "b" and method != "info"]
        assert methods == ["step", "choose_port", "join_training", "last_metrics"]
        # The next one is not taken for it.
        setting.fleet["b"].answers["step"] = setting.fleet["c"].answers["step"] = {"loss": 4.0}
        assert await setting.group.step(BATCH) == {"loss": 4.0}

    asyncio.run(scenario())


def test_a_part_of_the_state_that_nobody_holds_is_the_runs_error() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        for lost in ("a", "b"):
            setting.fleet[lost].kill()
        setting.fleet["c"].answers |= {
            "step": WorkerFailedError("all-gather failed"),
            "join_training": StateLostError("33% of the state is gone"),
        }
        with pytest.raises(StateLostError, match=r"33% of the state is gone \(a, b lost\): continue with --resume"):
            await setting.group.step(BATCH)

    asyncio.run(scenario())


def test_a_leaving_worker_hands_over_what_is_lost_with_another() -> None:
    """``b`` is lost while ``a`` leaves: what both held is sent by ``a`` before it goes."""

    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        setting.fleet["b"].kill()

        def join(place: Any, *_: bool) -> int:
            if place.num_ranks == 1 and not handed_over:
                raise StateLostError("33% of the state is gone")
            handed_over.extend([place.num_leaving] * bool(place.num_leaving))
            return 0

        handed_over: list[int] = []
        setting.fleet["c"].answers["join_training"] = join
        assert await setting.group.remove(("a",), on_leaving=lambda: None)
        assert handed_over == [1]
        assert [(ranks, rank) for _, rank, ranks in setting.generations("a")][-1] == (2, 1)
        assert setting.group.members == ("c",)
        assert setting.lost == ["b"]
        assert setting.fleet.log[-1] == ("a", "leave_training")

    asyncio.run(scenario())


def test_all_members_copy_their_state_and_do_it_again_without_one_that_is_lost() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        setting.fleet["a"].kill()
        answers = iter([WorkerFailedError("all-gather failed"), None])
        setting.fleet["b"].answers["copy_state"] = lambda: _raised(next(answers))
        assert await setting.group.copy_state() == ("b", "c")
        assert setting.lost == ["a"]
        copies = [slot_id for slot_id, method in setting.fleet.log if method == "copy_state"]
        assert sorted(copies) == ["b", "b", "c", "c"]

    asyncio.run(scenario())


def test_a_state_is_written_during_a_step_and_by_those_who_have_left_and_given_up_where_one_is_lost() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        copied = await setting.group.copy_state()
        assert await setting.group.remove(("c",), on_leaving=lambda: None)
        async with setting.group._boundary.training():  # as while a step is under way
            await setting.group.write_state(copied, Path("folder"))
        writes = [slot_id for slot_id, method in setting.fleet.log if method == "write_state"]
        assert sorted(writes) == ["a", "b", "c"]
        setting.fleet["b"].kill()
        with pytest.raises(WriterLostError, match="checkpoint folder is given up"):
            await setting.group.write_state(copied, Path("folder"))
        assert setting.group.members == ("a", "b"), "whoever steps finds that, or the heartbeat"

    asyncio.run(scenario())


def test_all_members_load_their_part_of_a_checkpoint() -> None:
    async def scenario() -> None:
        setting = Setting("a", "b")
        setting.fleet["a"].answers["load_trainer"] = setting.fleet["b"].answers["load_trainer"] = 7
        await setting.group.form([("a",), ("b",)], Path("folder"))
        calls = [call for call in setting.fleet.log if call[1] in ("join_training", "load_trainer")]
        assert calls[-2:] == [("a", "load_trainer"), ("b", "load_trainer")]
        # Seven steps are done: an eighth that a survivor had completed is told from them.
        setting.fleet["b"].kill()
        setting.fleet["a"].answers |= {
            "step": WorkerFailedError("all-gather failed"),
            "join_training": 8,
            "last_metrics": {"loss": 3.0},
        }
        assert await setting.group.step(BATCH) == {"loss": 3.0}

    asyncio.run(scenario())


def test_a_member_that_is_ended_in_mid_step_is_lost_at_once() -> None:
    """The heartbeat ends whoever is silent; the others do the step again without it."""

    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        with unfinished(setting.fleet["b"], "step"):
            step = asyncio.create_task(setting.group.step(BATCH))
            await settled()
            setting.fleet.kill("b", "b gave no sign of life")
            assert await step == {"loss": 1.0}
        assert setting.lost == ["b"]
        assert setting.group.members == ("a",)

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


def test_nobody_left() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        setting.fleet["a"].kill()
        setting.fleet["b"].kill()
        with pytest.raises(WorkerFailedError, match=r"a, b lost: .*--resume"):
            await setting.group.step(BATCH)

    asyncio.run(scenario())


def test_the_next_rank_does_what_the_first_is_lost_over() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        asked: list[str] = []

        async def action(leader: str) -> int:
            asked.append(leader)
            if leader == "a":
                raise WorkerLostError("a is silent")
            return 7

        assert await setting.group.by_leader(action) == 7
        assert asked == ["a", "b"]
        assert setting.lost == ["a"]

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


def test_a_member_that_came_back_with_another_worker_is_not_expelled_for_the_one_before() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        before: Any = setting.fleet["a"]
        await setting.fleet.recover(("a",))
        await setting.group.expel("a", before, WorkerLostError("its process died"))
        assert setting.group.members == ("a", "b")
        assert setting.lost == []

    asyncio.run(scenario())


def test_a_member_that_is_found_lost_between_two_steps_is_expelled_once() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        with unfinished(setting.fleet["b"], "step") as answer:
            step = asyncio.create_task(setting.group.step(BATCH))
            await settled()
            error = WorkerLostError("a did not send its weights")
            worker: Any = setting.fleet["a"]
            expulsions = [asyncio.create_task(setting.group.expel("a", worker, error)) for _ in range(2)]
            await settled()
            assert setting.group.members == ("a", "b"), "the step is not done"
            answer.set_result({"loss": 1.0})
            await asyncio.gather(step, *expulsions)
        assert setting.group.members == ("b",)
        assert setting.lost == ["a"]

    asyncio.run(scenario())


def test_a_newcomer_lost_on_the_way_leaves_the_group_whole() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("new",)).formed()
        setting.fleet["new"].kill()
        with pytest.raises(WorkerLostError):
            await setting.group.add(("new",))
        assert setting.group.members == ("a",)
        assert setting.lost == ["new"]
        assert await setting.group.step(BATCH) == {"loss": 1.0}

    asyncio.run(scenario())


def test_a_newcomer_never_becomes_the_one_that_holds_the_state() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("new",)).formed()
        setting.fleet["a"].kill()
        with pytest.raises(WorkerFailedError, match="no trainer is left"):
            await setting.group.add(("new",))

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
            answer.set_result({"loss": 1.0})
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


# Gangs


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
            stepped.set_result({"loss": 1.0})
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
        assert await setting.group.step(BATCH) == {"loss": 1.0}
        assert setting.group.members == ("a",)

    asyncio.run(scenario())


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
            stepped.set_result({"loss": 1.0})
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
            setting.fleet["a"].answers["step"] = {"loss": 2.0}
            stepped.set_exception(WorkerFailedError("no answer from rank 1"))
            assert await stepping == {"loss": 2.0}
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
            a.answers["join_training"] = 0
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


def test_those_who_stay_train_on_while_the_memory_of_one_that_left_is_freed() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        with unfinished(setting.fleet["b"], "leave_training") as left:
            removing = asyncio.create_task(setting.group.remove(("b",), on_leaving=lambda: None))
            await settled()
            assert await setting.group.step(BATCH) == {"loss": 1.0}
            assert not removing.done()
            left.set_result(None)
            assert await removing
        assert setting.group.pause_s == 0.0

    asyncio.run(scenario())
