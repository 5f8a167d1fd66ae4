"""Moves and replacements with fakes: the order of events, and a failure at each step of a move."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import pytest
from controller_fakes import settled, until
from reallocation_setting import TO_ROLLOUT, TO_TRAIN, ScriptedPolicy, Setting, run

from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import Forecast, Move, Observation, Plan
from rlserve.manager.roles import Role
from rlserve.tracking.events import Decision, FailureEvent, SlotEvent, WorkerEvent


def test_a_move_to_rollout() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: setting.state("t1") is GangState.ROLLOUT)
        assert setting.log == ["trainers remove t1", "replicas join t1"]
        assert (setting.counters.moves_to_rollout, setting.counters.moves_to_train) == (1, 0)
        owners = [event.owner for event in setting.records(SlotEvent) if event.slot_id == "t1"]
        assert owners[0] == "moving"
        assert owners[-1] == "rollout"
        decision = setting.records(Decision)[0]
        assert (decision.action, decision.slot_id, decision.queue_length) == ("to_rollout", "t1", 5)

    run(scenario, TO_ROLLOUT)


def test_what_a_move_cost_is_measured_and_a_first_role_is_no_move() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: bool(setting.measuring.figures().move_costs))
        costs = setting.measuring.figures().move_costs
        assert list(costs) == [Role.ROLLOUT]
        assert (costs[Role.ROLLOUT].num_moves, costs[Role.ROLLOUT].trainer_pause_s) == (1, 1.5)

    run(scenario, TO_ROLLOUT)


def test_what_the_policy_predicts_stands_in_the_decision() -> None:
    forecast = Forecast(rate_now=2.0, rate_after=2.5, gain=60.0, cost=8.0, horizon_s=120.0, target_num_rollout=2)

    class Predicting(ScriptedPolicy):
        def decide(self, observation: Observation, state: int) -> tuple[Plan, int]:
            return replace(super().decide(observation, state)[0], forecast=forecast), state + 1

    async def scenario(setting: Setting) -> None:
        await until(lambda: bool(setting.records(Decision)))
        decision = setting.records(Decision)[0]
        assert {name: getattr(decision, name) for name in asdict(forecast)} == asdict(forecast)

    run(scenario, policy=Predicting())


def test_a_move_to_training() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: setting.state("r0") is GangState.TRAIN)
        assert setting.log == ["replicas leave r0", "trainers prepare r0", "trainers add r0"]
        assert (setting.counters.moves_to_rollout, setting.counters.moves_to_train) == (0, 1)

    run(scenario, TO_TRAIN)


@pytest.mark.parametrize(
    ("move", "part", "step"),
    [
        (TO_ROLLOUT, "trainers", "remove"),
        (TO_ROLLOUT, "replicas", "join"),
        (TO_TRAIN, "replicas", "leave"),
        (TO_TRAIN, "trainers", "prepare"),
        (TO_TRAIN, "trainers", "add"),
    ],
)
def test_a_worker_that_dies_at_any_step_of_a_move_is_replaced_in_its_new_role(move: Move, part: str, step: str) -> None:
    async def scenario(setting: Setting) -> None:
        getattr(setting, part).failures[step] = WorkerLostError("its process died")
        wanted = GangState.ROLLOUT if move.to is Role.ROLLOUT else GangState.TRAIN
        await until(lambda: bool(setting.records(FailureEvent)))
        await until(lambda: setting.state(move.gang_id) is wanted)
        assert (move.gang_id, "KILL") in setting.fleet.log
        assert (move.gang_id, "RESTART") in setting.fleet.log
        assert setting.counters.worker_failures == 1
        assert setting.counters.engine_restarts == (move.to is Role.ROLLOUT)
        assert setting.counters.moves_to_rollout + setting.counters.moves_to_train == 0
        assert [event.slot_id for event in setting.records(WorkerEvent)].count(move.gang_id) == 2

    run(scenario, move)


def test_a_loss_that_was_reported_in_the_middle_of_a_move_counts_once() -> None:
    """The trainers report a newcomer that dies, and the move fails besides."""

    async def scenario(setting: Setting) -> None:
        async def add(slot_ids: tuple[str, ...]) -> None:
            if setting.counters.worker_failures == 0:
                setting.lose(slot_ids[0], Role.TRAIN)
                await settled()
                raise WorkerLostError("lost while it joined")

        setting.trainers.add = add  # type: ignore[method-assign]
        await until(lambda: setting.state("r0") is GangState.TRAIN)
        assert setting.counters.worker_failures == 1
        assert setting.fleet.log.count(("r0", "RESTART")) == 1

    run(scenario, TO_TRAIN)


def test_the_last_trainer_stays() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: len(setting.records(Decision)) >= 2)  # the script is over, and the policy holds
        assert setting.state("t1") is GangState.TRAIN
        assert setting.counters.worker_failures == 0

    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = await Setting(tasks, TO_ROLLOUT).begun()
            setting.trainers.members.remove("t0")
            loop = tasks.create_task(setting.reallocation.run())
            await scenario(setting)
            loop.cancel()

    asyncio.run(whole())


def test_a_trainer_whose_others_are_lost_while_it_leaves_stays_one() -> None:
    async def scenario(setting: Setting) -> None:
        setting.trainers.others_are_lost = True
        await until(lambda: len(setting.records(Decision)) >= 2)
        states = [step.after for step in setting.reallocation.table.history if step.gang_id == "t1"]
        assert states[-2:] == [GangState.LEAVING_TRAIN, GangState.TRAIN]
        assert setting.counters.worker_failures == 0, "nobody was ended"
        assert setting.counters.moves_to_rollout == 0

    run(scenario, TO_ROLLOUT)


def test_a_new_worker_that_does_not_come_up_is_tried_again() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet.restart_failures = [WorkerLostError("died while starting")]
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is GangState.ROLLOUT)
        assert setting.fleet.log.count(("r0", "RESTART")) == 2
        assert setting.counters.worker_failures == 2

    run(scenario)


def test_one_loss_too_many_names_the_slot() -> None:
    async def scenario(setting: Setting) -> None:
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is GangState.ROLLOUT)
        with pytest.raises(WorkerFailedError, match=r"2 workers were lost, more than .*=1; the last on t1: died"):
            setting.lose("t1", Role.TRAIN)

    run(scenario, max_worker_failures=1)


def test_after_settling_nothing_moves_but_the_lost_are_still_replaced() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.reallocation.settle()
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is GangState.ROLLOUT)
        assert setting.state("t1") is GangState.TRAIN

    run(scenario, TO_ROLLOUT)


def test_closing_gives_up_replacements() -> None:
    async def scenario(setting: Setting) -> None:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def join(slot_id: str) -> None:
            await never

        setting.replicas.join = join  # type: ignore[method-assign]
        setting.lose("r0", Role.ROLLOUT)
        await settled()
        await setting.recovery.close()
        assert never.cancelled()

    run(scenario)
