"""Moves and replacements with fakes: the order of events, and a failure at each step of a move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from controller_fakes import FakeFleet, recorded, run_context, settled, until

from rlserve.controller.events import WorkerLost
from rlserve.controller.load import Load
from rlserve.controller.reallocation import Reallocation, ReallocationLimits
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.manager.policies.base import Move, Observation, Plan, Policy, Role
from rlserve.manager.slot_table import SlotState
from rlserve.pool.catalogue import slot_type
from rlserve.pool.slots import Slot
from rlserve.tracking.events import Decision, FailureEvent, Record, SlotEvent, WorkerEvent


class ScriptedPolicy(Policy[int]):
    """Hands out the given plans one after the other, then holds."""

    def __init__(self, *moves: Move) -> None:
        self.moves = moves

    def initial_state(self) -> int:
        return 0

    def decide(self, observation: Observation, state: int) -> tuple[Plan, int]:
        return Plan(moves=self.moves[state : state + 1], reason="script"), state + 1


class FakeTrainers:
    def __init__(self, log: list[str], members: list[str]) -> None:
        self.log, self.members = log, members
        self.failures: dict[str, Exception] = {}

    async def add(self, slot_id: str) -> None:
        self.log.append(f"trainers add {slot_id}")
        if "add" in self.failures:
            raise self.failures.pop("add")
        self.members.append(slot_id)

    async def remove(self, slot_id: str, *, on_leaving: Callable[[], None]) -> bool:
        if len(self.members) == 1:
            return False
        on_leaving()
        self.log.append(f"trainers remove {slot_id}")
        self.members.remove(slot_id)
        if "remove" in self.failures:
            raise self.failures.pop("remove")
        return True


class FakeReplicas:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.failures: dict[str, Exception] = {}

    async def join(self, slot_id: str) -> None:
        self.log.append(f"replicas join {slot_id}")
        if "join" in self.failures:
            raise self.failures.pop("join")

    async def leave(self, slot_id: str) -> None:
        self.log.append(f"replicas leave {slot_id}")
        if "leave" in self.failures:
            raise self.failures.pop("leave")

    def forget(self, slot_id: str) -> None:
        self.log.append(f"replicas forget {slot_id}")


class Setting:
    """Two trainers t0 and t1, and one replica r0."""

    def __init__(self, tasks: asyncio.TaskGroup, *moves: Move, max_worker_failures: int = 8) -> None:
        self.log: list[str] = []
        self.fleet = FakeFleet(("t0", "t1", "r0"))
        self.trainers = FakeTrainers(self.log, ["t0", "t1"])
        self.replicas = FakeReplicas(self.log)
        self.context = run_context(tasks)
        self.recorded = recorded(self.context.events, Record)
        self.counters = self.context.counters
        fakes: Any = self
        self.reallocation = Reallocation(
            self.context,
            [Slot(id=name, type=slot_type("cpu"), prefer=None, num_threads=1) for name in ("t0", "t1", "r0")],
            fleet=fakes.fleet,
            trainers=fakes.trainers,
            replicas=fakes.replicas,
            policy=ScriptedPolicy(*moves),
            load=fakes,
            limits=ReallocationLimits(interval_s=0.001, max_worker_failures=max_worker_failures),
        )

    def read(self) -> Load:
        return Load(num_waiting=5, num_buffered=0, num_in_flight=0, trainer_waiting=False)

    def lose(self, slot_id: str, role: Role) -> None:
        """Whoever worked with it says that it died."""
        self.context.events.emit(WorkerLost(slot_id=slot_id, role=role, error=WorkerLostError("died")))

    async def begun(self) -> Setting:
        for slot_id, role in (("t0", Role.TRAIN), ("t1", Role.TRAIN), ("r0", Role.ROLLOUT)):
            await self.reallocation.begin(slot_id, role)
        self.log.clear()
        return self

    def state(self, slot_id: str) -> SlotState:
        return self.reallocation.table.state(slot_id)

    def records(self, kind: type) -> list[Any]:
        return [record for record in self.recorded if isinstance(record, kind)]


def run(scenario: Callable[[Setting], Awaitable[None]], *moves: Move, max_worker_failures: int = 8) -> None:
    """Begin, run the loop until the scenario is over, and check the table."""

    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = await Setting(tasks, *moves, max_worker_failures=max_worker_failures).begun()
            loop = tasks.create_task(setting.reallocation.run())
            await asyncio.wait_for(scenario(setting), 10)
            loop.cancel()
            setting.reallocation.table.check_integrity()

    asyncio.run(whole())


TO_ROLLOUT = Move(slot_id="t1", to=Role.ROLLOUT)
TO_TRAIN = Move(slot_id="r0", to=Role.TRAIN)


def test_a_move_to_rollout() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: setting.state("t1") is SlotState.ROLLOUT)
        assert setting.log == ["trainers remove t1", "replicas join t1"]
        assert (setting.counters.moves_to_rollout, setting.counters.moves_to_train) == (1, 0)
        owners = [event.owner for event in setting.records(SlotEvent) if event.slot_id == "t1"]
        assert owners[0] == "moving"
        assert owners[-1] == "rollout"
        decision = setting.records(Decision)[0]
        assert (decision.action, decision.slot_id, decision.queue_length) == ("to_rollout", "t1", 5)

    run(scenario, TO_ROLLOUT)


def test_a_move_to_training() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: setting.state("r0") is SlotState.TRAIN)
        assert setting.log == ["replicas leave r0", "trainers add r0"]
        assert (setting.counters.moves_to_rollout, setting.counters.moves_to_train) == (0, 1)

    run(scenario, TO_TRAIN)


@pytest.mark.parametrize(
    ("move", "part", "step"),
    [
        (TO_ROLLOUT, "trainers", "remove"),
        (TO_ROLLOUT, "replicas", "join"),
        (TO_TRAIN, "replicas", "leave"),
        (TO_TRAIN, "trainers", "add"),
    ],
)
def test_a_worker_that_dies_at_any_step_of_a_move_is_replaced_in_its_new_role(move: Move, part: str, step: str) -> None:
    async def scenario(setting: Setting) -> None:
        getattr(setting, part).failures[step] = WorkerLostError("its process died")
        wanted = SlotState.ROLLOUT if move.to is Role.ROLLOUT else SlotState.TRAIN
        await until(lambda: bool(setting.records(FailureEvent)))
        await until(lambda: setting.state(move.slot_id) is wanted)
        assert (move.slot_id, "KILL") in setting.fleet.log
        assert (move.slot_id, "RESTART") in setting.fleet.log
        assert setting.counters.worker_failures == 1
        assert setting.counters.engine_restarts == (move.to is Role.ROLLOUT)
        assert setting.counters.moves_to_rollout + setting.counters.moves_to_train == 0
        assert [event.slot_id for event in setting.records(WorkerEvent)].count(move.slot_id) == 2

    run(scenario, move)


def test_a_loss_that_was_reported_in_the_middle_of_a_move_counts_once() -> None:
    """The trainers report a newcomer that dies, and the move fails besides."""

    async def scenario(setting: Setting) -> None:
        async def add(slot_id: str) -> None:
            if setting.counters.worker_failures == 0:
                setting.lose(slot_id, Role.TRAIN)
                await settled()
                raise WorkerLostError("lost while it joined")

        setting.trainers.add = add  # type: ignore[method-assign]
        await until(lambda: setting.state("r0") is SlotState.TRAIN)
        assert setting.counters.worker_failures == 1
        assert setting.fleet.log.count(("r0", "RESTART")) == 1

    run(scenario, TO_TRAIN)


def test_the_last_trainer_stays() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: len(setting.records(Decision)) >= 3)
        assert setting.state("t1") is SlotState.TRAIN
        assert setting.counters.worker_failures == 0

    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = await Setting(tasks, TO_ROLLOUT).begun()
            setting.trainers.members.remove("t0")
            loop = tasks.create_task(setting.reallocation.run())
            await scenario(setting)
            loop.cancel()

    asyncio.run(whole())


def test_a_new_worker_that_does_not_come_up_is_tried_again() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet.restart_failures = [WorkerLostError("died while starting")]
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is SlotState.ROLLOUT)
        assert setting.fleet.log.count(("r0", "RESTART")) == 2
        assert setting.counters.worker_failures == 2

    run(scenario)


def test_one_loss_too_many_names_the_slot() -> None:
    async def scenario(setting: Setting) -> None:
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is SlotState.ROLLOUT)
        with pytest.raises(WorkerFailedError, match=r"2 workers were lost, more than .*=1; the last on t1: died"):
            setting.lose("t1", Role.TRAIN)

    run(scenario, max_worker_failures=1)


def test_after_settling_nothing_moves_but_the_lost_are_still_replaced() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.reallocation.settle()
        setting.lose("r0", Role.ROLLOUT)
        await until(lambda: setting.state("r0") is SlotState.ROLLOUT)
        assert setting.state("t1") is SlotState.TRAIN

    run(scenario, TO_ROLLOUT)


def test_closing_gives_up_replacements() -> None:
    async def scenario(setting: Setting) -> None:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def join(slot_id: str) -> None:
            await never

        setting.replicas.join = join  # type: ignore[method-assign]
        setting.lose("r0", Role.ROLLOUT)
        await settled()
        await setting.reallocation.close()
        assert never.cancelled()

    run(scenario)
