"""Trainers that are lost: in a step, between two, while they join or leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from controller_fakes import BATCH, STEPPED, settled, unfinished
from ray.exceptions import RayActorError
from trainer_group_setting import Setting, raised

from rlserve.errors import StateLostError, WorkerFailedError, WorkerLostError
from rlserve.pool.base import Joined, Stepped


def test_a_lost_member_breaks_a_step_that_the_survivors_do_again() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        broken = WorkerFailedError("all-gather failed, no answer from rank 0")
        setting.fleet["a"].kill()

        def tried(answer: Any) -> Any:
            setting.clock.now_s += 1.0
            return raised(answer)

        for survivor in ("b", "c"):
            answers = iter([broken, Stepped(metrics={"loss": 2.0})])
            setting.fleet[survivor].answers["step"] = lambda *_, answers=answers: tried(next(answers))
        step = await setting.group.step(BATCH)
        assert step.metrics == {"loss": 2.0}
        assert (step.broken_s, step.duration_s) == (2.0, 4.0)
        assert setting.lost == ["a"]
        assert setting.group.members == ("b", "c")
        calls = [call for call in setting.fleet.log if call[0] == "b" and call[1] != "info"]
        assert [method for _, method in calls] == ["step", "choose_port", "join_training", "step"]
        assert setting.generations("b")[-1] == (3, 0, 2)

    asyncio.run(scenario())


def test_a_step_that_a_survivor_had_completed_is_not_done_again() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        setting.fleet["a"].kill()
        for survivor in ("b", "c"):
            setting.fleet[survivor].answers |= {
                "step": WorkerFailedError("all-gather failed, no answer from rank 0"),
                "join_training": Joined(num_steps=1),
                "last_metrics": {"loss": 3.0},
            }
        step = await setting.group.step(BATCH)
        assert (step.metrics, step.broken_s) == ({"loss": 3.0}, 0.0)
        assert setting.group.members == ("b", "c")
        methods = [method for slot_id, method in setting.fleet.log if slot_id == "b" and method != "info"]
        assert methods == ["step", "choose_port", "join_training", "last_metrics"]
        # The next one is not taken for it.
        setting.fleet["b"].answers["step"] = setting.fleet["c"].answers["step"] = Stepped(metrics={"loss": 4.0})
        assert (await setting.group.step(BATCH)).metrics == {"loss": 4.0}

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

        def join(place: Any, *_: bool) -> Joined:
            if place.num_ranks == 1 and not handed_over:
                raise StateLostError("33% of the state is gone")
            handed_over.extend([place.num_leaving] * bool(place.num_leaving))
            return Joined(num_steps=0)

        handed_over: list[int] = []
        setting.fleet["c"].answers["join_training"] = join
        assert await setting.group.remove(("a",), on_leaving=lambda: None)
        assert handed_over == [1]
        assert [(ranks, rank) for _, rank, ranks in setting.generations("a")][-1] == (2, 1)
        assert setting.group.members == ("c",)
        assert setting.lost == ["b"]
        assert setting.fleet.log[-1] == ("a", "leave_training")

    asyncio.run(scenario())


def dying(setting: Setting, *slot_ids: str) -> Callable[..., None]:
    """What a call comes to that all of these die in."""

    def dies(*_: object) -> None:
        for slot_id in slot_ids:
            setting.fleet[slot_id].kill()
        raise RayActorError()

    return dies


@pytest.mark.parametrize("method", ["choose_port", "join_training"])
def test_whoever_is_about_to_leave_stays_where_all_others_turn_out_to_be_lost(method: str) -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()

        setting.fleet["a"].answers[method] = dying(setting, "a", "b")
        left: list[str] = []
        assert not await setting.group.remove(("c",), on_leaving=lambda: left.append("c"))
        assert left == ["c"], "it was to leave"
        assert setting.group.members == ("c",)
        assert sorted(setting.lost) == ["a", "b"]
        assert ("c", "leave_training") not in setting.fleet.log
        assert setting.generations("c")[-1][1:] == (0, 1)
        assert (await setting.group.step(BATCH)).metrics == {"loss": 1.0}

    asyncio.run(scenario())


def test_nobody_is_left_where_whoever_was_about_to_leave_is_lost_too() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()

        setting.fleet["a"].answers["join_training"] = dying(setting, "a", "b")
        with pytest.raises(WorkerFailedError, match=r"no trainer is left that holds the state"):
            await setting.group.remove(("b",), on_leaving=lambda: None)

    asyncio.run(scenario())


def test_a_member_that_is_ended_in_mid_step_is_lost_at_once() -> None:
    """The heartbeat ends whoever is silent; the others do the step again without it."""

    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        with unfinished(setting.fleet["b"], "step"):
            step = asyncio.create_task(setting.group.step(BATCH))
            await settled()
            setting.fleet.kill("b", "b gave no sign of life")
            assert (await step).metrics == {"loss": 1.0}
        assert setting.lost == ["b"]
        assert setting.group.members == ("a",)

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
            answer.set_result(STEPPED)
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
        assert (await setting.group.step(BATCH)).metrics == {"loss": 1.0}

    asyncio.run(scenario())


def test_a_newcomer_never_becomes_the_one_that_holds_the_state() -> None:
    async def scenario() -> None:
        setting = await Setting("a", others=("new",)).formed()
        setting.fleet["a"].kill()
        with pytest.raises(WorkerFailedError, match="no trainer is left"):
            await setting.group.add(("new",))

    asyncio.run(scenario())
