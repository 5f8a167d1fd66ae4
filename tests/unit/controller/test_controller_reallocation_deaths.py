"""Workers that die while nobody calls them, and the states that workers are in."""

from __future__ import annotations

from controller_fakes import until
from reallocation_setting import GANGS, Setting, run

from rlserve.errors import WorkerLostError
from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import Move
from rlserve.manager.roles import Role
from rlserve.tracking.events import WorkerStateEvent


def test_a_trainer_that_dies_between_two_steps_is_expelled_and_a_replica_is_lost() -> None:
    async def scenario(setting: Setting) -> None:
        setting.die("t1")
        await until(lambda: bool(setting.log))
        setting.die("r0")
        assert setting.log == ["trainers expel t1", "replicas lose r0"]
        assert isinstance(setting.replicas.lost_with, WorkerLostError)

    run(scenario)


def test_a_follower_that_dies_costs_its_leader_the_role() -> None:
    async def scenario(setting: Setting) -> None:
        setting.die("r1")
        assert setting.log == ["replicas lose r0"]
        assert not isinstance(setting.replicas.lost_with, WorkerLostError), "its own worker lives"

    run(scenario, gangs=GANGS)


def test_a_lost_replica_serves_again_while_another_gang_changes_hands_and_a_lost_trainer_waits() -> None:
    async def scenario(setting: Setting) -> None:
        async with setting.recovery.moving:  # as when a move waits for a worker that is silent
            setting.lose("r0", Role.ROLLOUT)
            setting.lose("t1", Role.TRAIN)
            await until(lambda: setting.state("r0") is GangState.ROLLOUT)
            await until(lambda: setting.state("t1") is GangState.IDLE)
        await until(lambda: setting.state("t1") is GangState.TRAIN)

    run(scenario)


def test_nothing_is_decided_while_a_lost_replica_comes_back() -> None:
    async def scenario(setting: Setting) -> None:
        seen: list[bool] = []

        async def join(slot_id: str) -> None:
            seen.append(setting.reallocation.observe().moving)

        setting.replicas.join = join  # type: ignore[method-assign]
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is GangState.ROLLOUT)
        assert seen == [True]
        assert not setting.reallocation.observe().moving

    run(scenario)


def test_a_gang_without_a_role_gets_a_new_worker() -> None:
    async def scenario(setting: Setting) -> None:
        gang = setting.gangs[1]
        await setting.recovery.guard(gang, None, setting.recovery.roles.give_up(gang, "has to"))
        setting.die("t1")
        await until(lambda: setting.state("t1") is GangState.IDLE)
        assert [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"] == ["t1"]
        assert setting.counters.worker_failures == 1

    run(scenario)


def test_a_worker_is_stale_from_its_start_until_its_gang_has_a_role() -> None:
    async def scenario(setting: Setting) -> None:
        setting.die("r0")
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is GangState.ROLLOUT)
        states = [event.state for event in setting.records(WorkerStateEvent) if event.slot_id == "r0"]
        assert states == ["restarting", "stale", "healthy", "dead", "restarting", "stale", "healthy"]

    run(scenario)


def test_a_worker_whose_gang_gives_its_role_up_is_stale() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: setting.state("t1") is GangState.ROLLOUT)
        states = [event.state for event in setting.records(WorkerStateEvent) if event.slot_id == "t1"]
        assert states == ["restarting", "stale", "healthy", "stale", "healthy"]

    run(scenario, Move(gang_id="t1", to=Role.ROLLOUT))
