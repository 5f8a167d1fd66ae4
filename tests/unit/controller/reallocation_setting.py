"""Gangs, and all that moves and replaces them, over fake trainers, replicas and workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from controller_fakes import FakeFleet, make_gang, recorded, run_context

from rlserve.controller.calls import Calls
from rlserve.controller.clock import RunClock
from rlserve.controller.departures import Departures
from rlserve.controller.engine_ranks import EngineRanks
from rlserve.controller.events import WorkerDied, WorkerLost
from rlserve.controller.gang_book import GangBook
from rlserve.controller.load import Load
from rlserve.controller.measuring import Measuring
from rlserve.controller.node_watch import NodeWatch, plan_changes
from rlserve.controller.observer import Observer
from rlserve.controller.ports import Sharing
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.recovery import Recovery
from rlserve.controller.role_changes import RoleChanges
from rlserve.controller.shared_pool import SharedPool
from rlserve.errors import WorkerLostError
from rlserve.manager.gang_table import GangState
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.policies.base import Admission, Move, Observation, Plan, Policy
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Gang, Node
from rlserve.tracking.events import Record


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
        self.pause_s = 0.0
        self.others_are_lost = False
        """Found whenever a gang leaves, which then stays."""
        self.num_tokens: int | None = None
        self.step_begin_s: float | None = None

    async def expel(self, slot_id: str, worker: Any, error: Exception) -> None:
        self.log.append(f"trainers expel {slot_id}")

    async def prepare(self, slot_ids: tuple[str, ...]) -> None:
        self.log.append(f"trainers prepare {' '.join(slot_ids)}")
        if "prepare" in self.failures:
            raise self.failures.pop("prepare")

    async def add_when(
        self, ready: asyncio.Future[None], slot_ids: tuple[str, ...], *, patience_s: Callable[[], float]
    ) -> None:
        await ready
        await self.add(slot_ids)

    async def add(self, slot_ids: tuple[str, ...]) -> None:
        self.log.append(f"trainers add {' '.join(slot_ids)}")
        if "add" in self.failures:
            raise self.failures.pop("add")
        self.members += [slot_id for slot_id in slot_ids if slot_id not in self.members]

    async def remove(self, slot_ids: tuple[str, ...], *, on_leaving: Callable[[], None]) -> bool:
        if set(self.members) <= set(slot_ids):
            return False
        on_leaving()
        self.log.append(f"trainers remove {' '.join(slot_ids)}")
        self.pause_s += 1.5
        if self.others_are_lost:
            self.members = list(slot_ids)
            return False
        self.members = [member for member in self.members if member not in slot_ids]
        if "remove" in self.failures:
            raise self.failures.pop("remove")
        return True


class FakeReplicas:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.failures: dict[str, Exception] = {}
        self.lost_with: Exception | None = None

    async def join(self, slot_id: str) -> None:
        self.log.append(f"replicas join {slot_id}")
        if "join" in self.failures:
            raise self.failures.pop("join")

    async def leave(self, slot_id: str) -> None:
        self.log.append(f"replicas leave {slot_id}")
        if "leave" in self.failures:
            raise self.failures.pop("leave")

    def lose(self, slot_id: str, error: Exception) -> None:
        self.log.append(f"replicas lose {slot_id}")
        self.lost_with = error

    def forget(self, slot_id: str) -> None:
        self.log.append(f"replicas forget {slot_id}")


class Setting:
    """Two gangs of trainers, t0 and t1, and one of rollout, r0; of one slot each unless said otherwise."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        *moves: Move,
        max_worker_failures: int = 8,
        gangs: Sequence[Gang] = (make_gang("t0"), make_gang("t1"), make_gang("r0")),
        policy: Policy[Any] | None = None,
        clock: RunClock | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.log: list[str] = []
        self.gangs = gangs
        self.fleet = FakeFleet(tuple(slot_id for gang in gangs for slot_id in gang.slot_ids))
        self.trainers = FakeTrainers(self.log, [slot_id for gang in gangs[:-1] for slot_id in gang.slot_ids])
        self.replicas = FakeReplicas(self.log)
        self.context = run_context(tasks, clock)
        self.recorded = recorded(self.context.events, Record)
        self.counters = self.context.counters
        self.nodes: tuple[Node, ...] = ()
        self.book = GangBook(self.context, gangs)
        fakes: Any = self
        self.measuring = Measuring(self.context, self.book, Meter())
        self.recovery = Recovery(
            self.context,
            self.book,
            fleet=fakes.fleet,
            trainers=fakes.trainers,
            replicas=fakes.replicas,
            roles=RoleChanges(
                self.book, EngineRanks(fakes.fleet, switch_timeout_s=5.0), fakes.trainers, fakes.replicas
            ),
            nodes=self.look,
            max_worker_failures=max_worker_failures,
        )
        self.reallocation = self._reallocation(policy or ScriptedPolicy(*moves))
        self.departures = Departures(self.context, self.book, self.recovery, fakes.fleet, grace_s=60.0)
        self.watch = NodeWatch(
            self.context,
            self.book,
            self.recovery,
            self.departures,
            nodes=self.look if sharing is None else self._shared(sharing).nodes,
            plan=partial(plan_changes, wanted="auto", gang_size=len(gangs[0].slots)),
            start=self.start,
            interval_s=0.001,
        )

    def _shared(self, sharing: Sharing) -> SharedPool:
        return SharedPool(
            self.context,
            self.book,
            self.departures,
            sharing=sharing,
            nodes=self.look,
            useful=lambda num_slots: num_slots,
            lend_timeout_s=60.0,
        )

    def _reallocation(self, policy: Policy[Any]) -> Reallocation:
        fakes: Any = self
        return Reallocation(
            self.context,
            self.book,
            self.recovery,
            calls=Calls(self.context, self.book, trainers=fakes.trainers, load=fakes, measuring=self.measuring),
            policy=policy,
            observer=Observer(
                self.context,
                self.book,
                load=fakes,
                measuring=self.measuring,
                admission=Admission(
                    prompts_per_step=16, samples_per_prompt=8, max_live_groups=32, max_samples_per_replica=64
                ),
                num_steps=60,
                train_on_spot=False,
            ),
            measuring=self.measuring,
            interval_s=0.001,
        )

    def read(self) -> Load:
        return Load(num_waiting=5, client_queue=0.0, num_buffered=0, num_in_flight=0, trainer_waiting=False)

    async def look(self) -> tuple[Node, ...]:
        return self.nodes

    async def start(self, gang: Gang) -> None:
        spec: Any = None
        await self.fleet.start([(slot, spec) for slot in gang.slots])

    def lose(self, slot_id: str, role: Role, error: Exception | None = None) -> None:
        """Whoever worked with it says that it died, and has given its gang up, unless it is the last of trainers."""
        gang = self.book.gang_of(slot_id)
        rest = [member for member in self.trainers.members if member not in gang.slot_ids]
        self.trainers.members = rest or [member for member in self.trainers.members if member != slot_id]
        self.context.events.emit(WorkerLost(slot_id=slot_id, role=role, error=error or WorkerLostError("died")))

    def die(self, slot_id: str) -> None:
        """The heartbeat says so, and has ended what may be left of it."""
        worker: Any = self.fleet[slot_id]
        self.fleet.kill(slot_id, "its process died")
        self.book.workers.ended(slot_id, "its process died")
        error = WorkerLostError("its process died")
        self.context.events.emit(WorkerDied(slot_id=slot_id, worker=worker, error=error))

    async def begun(self) -> Setting:
        for gang in self.gangs:
            await self.reallocation.begin(gang, Role.ROLLOUT if gang is self.gangs[-1] else Role.TRAIN)
        self.log.clear()
        self.fleet.log.clear()
        return self

    def state(self, gang_id: str) -> GangState:
        return self.reallocation.table.state(gang_id)

    def records(self, kind: type) -> list[Any]:
        return [record for record in self.recorded if isinstance(record, kind)]


def run(scenario: Callable[[Setting], Awaitable[None]], *moves: Move, **changes: Any) -> None:
    """Begin, run the loop until the scenario is over, and check the table."""

    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = await Setting(tasks, *moves, **changes).begun()
            loop = tasks.create_task(setting.reallocation.run())
            await asyncio.wait_for(scenario(setting), 10)
            loop.cancel()
            await setting.recovery.close()
            setting.reallocation.table.check_integrity()

    asyncio.run(whole())


TO_ROLLOUT = Move(gang_id="t1", to=Role.ROLLOUT)


TO_TRAIN = Move(gang_id="r0", to=Role.TRAIN)


GANGS = (make_gang("t0", "t1"), make_gang("u0", "u1"), make_gang("r0", "r1"))
