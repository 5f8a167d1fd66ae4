"""Moves and replacements with fakes: the order of events, and a failure at each step of a move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
from controller_fakes import FakeFleet, make_gang, recorded, run_context, settled, until

from rlserve.controller.calls import Calls
from rlserve.controller.departures import Departures
from rlserve.controller.engine_ranks import EngineRanks
from rlserve.controller.events import WorkerDied, WorkerLost
from rlserve.controller.gang_book import GangBook
from rlserve.controller.load import Load
from rlserve.controller.measuring import Measuring
from rlserve.controller.node_watch import NodeWatch, plan_changes
from rlserve.controller.observer import Observer
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.recovery import Recovery
from rlserve.controller.role_changes import RoleChanges
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.manager.gang_table import GangState
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.policies.base import Admission, Forecast, Move, Observation, Plan, Policy
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Gang, Node
from rlserve.tracking.events import Decision, FailureEvent, Record, SlotEvent, WorkerEvent, WorkerStateEvent


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
    ) -> None:
        self.log: list[str] = []
        self.gangs = gangs
        self.fleet = FakeFleet(tuple(slot_id for gang in gangs for slot_id in gang.slot_ids))
        self.trainers = FakeTrainers(self.log, [slot_id for gang in gangs[:-1] for slot_id in gang.slot_ids])
        self.replicas = FakeReplicas(self.log)
        self.context = run_context(tasks)
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
        self.reallocation = Reallocation(
            self.context,
            self.book,
            self.recovery,
            calls=Calls(self.context, self.book, trainers=fakes.trainers, load=fakes, measuring=self.measuring),
            policy=policy or ScriptedPolicy(*moves),
            observer=Observer(
                self.context,
                self.book,
                load=fakes,
                measuring=self.measuring,
                admission=Admission(
                    prompts_per_step=16, samples_per_prompt=8, max_live_groups=32, max_samples_per_replica=64
                ),
                num_steps=60,
            ),
            measuring=self.measuring,
            interval_s=0.001,
        )
        self.departures = Departures(self.context, self.book, self.recovery, fakes.fleet, grace_s=60.0)
        self.watch = NodeWatch(
            self.context,
            self.book,
            self.recovery,
            self.departures,
            nodes=self.look,
            plan=partial(plan_changes, wanted="auto", gang_size=len(gangs[0].slots)),
            start=self.start,
            interval_s=0.001,
        )

    def read(self) -> Load:
        return Load(num_waiting=5, num_buffered=0, num_in_flight=0, trainer_waiting=False)

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


# Gangs of two slots

GANGS = (make_gang("t0", "t1"), make_gang("u0", "u1"), make_gang("r0", "r1"))


def test_a_gang_moves_as_one() -> None:
    async def scenario(setting: Setting) -> None:
        await until(lambda: setting.state("u0+u1") is GangState.ROLLOUT)
        assert setting.log == ["trainers remove u0 u1", "replicas join u0"]
        assert (setting.fleet["u0"].arguments["start_rollout"], setting.fleet["u1"].arguments["follow_rollout"]) == (
            [(place_of(setting, "u0"),)],
            [(place_of(setting, "u1"),)],
        )
        assert setting.counters.moves_to_rollout == 1
        for slot_id in ("u0", "u1"):
            assert [event.owner for event in setting.records(SlotEvent) if event.slot_id == slot_id][-1] == "rollout"
        (decision,) = [record for record in setting.records(Decision) if record.action != "hold"]
        assert (decision.slot_id, decision.num_train) == ("u0+u1", 4)

    run(scenario, Move(gang_id="u0+u1", to=Role.ROLLOUT), gangs=GANGS)


def place_of(setting: Setting, slot_id: str) -> Any:
    """The place in its engine that a worker was given last."""
    arguments = setting.fleet[slot_id].arguments
    ((*_, (place,)),) = [calls for method, calls in arguments.items() if method in ("start_rollout", "follow_rollout")]
    return place


def test_the_ranks_of_an_engine_stay_formed_until_one_is_lost() -> None:
    async def scenario(setting: Setting) -> None:
        first = [place_of(setting, slot_id) for slot_id in ("r0", "r1")]
        assert [(place.rank, place.num_ranks, place.port) for place in first] == [(0, 2, 1), (1, 2, 1)]
        assert len({place.secret for place in first}) == 1
        gang = setting.book["r0+r1"]
        await setting.recovery.roles.give_up(gang, "test")
        await setting.recovery.roles.take(gang, Role.ROLLOUT, "test")
        assert [place_of(setting, slot_id) for slot_id in ("r0", "r1")] == first
        setting.fleet["r1"].kill()
        setting.lose("r0", Role.ROLLOUT, WorkerFailedError("a rank is lost"))
        await until(lambda: setting.state("r0+r1") is GangState.ROLLOUT)
        again = [place_of(setting, slot_id) for slot_id in ("r0", "r1")]
        assert again[0].secret == again[1].secret != first[0].secret

    run(scenario, gangs=GANGS)


@pytest.mark.parametrize("lost", ["r0", "r1"])
def test_the_worker_that_a_replica_lost_is_replaced_and_no_other(lost: str) -> None:
    """Its leader only knows that a rank is lost."""

    async def scenario(setting: Setting) -> None:
        setting.fleet[lost].kill()
        setting.lose("r0", Role.ROLLOUT, WorkerFailedError("the engine stopped: a rank is lost"))
        await until(lambda: setting.state("r0+r1") is GangState.ROLLOUT)
        assert [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"] == [lost]
        assert [event.slot_id for event in setting.records(FailureEvent)] == [lost]
        assert (setting.counters.worker_failures, setting.counters.engine_restarts) == (1, 1)

    run(scenario, gangs=GANGS)


def test_a_gang_of_trainers_that_loses_one_comes_back_as_a_whole() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["u1"].kill()
        setting.lose("u1", Role.TRAIN)
        await until(lambda: setting.state("u0+u1") is GangState.TRAIN)
        assert setting.log == ["trainers prepare u0 u1", "trainers add u0 u1"]
        assert [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"] == ["u1"]

    run(scenario, gangs=GANGS)


def test_the_last_gang_of_trainers_goes_on_while_a_worker_of_it_is_replaced() -> None:
    async def scenario(setting: Setting) -> None:
        setting.lose("t1", Role.TRAIN)
        assert setting.trainers.members == ["t0"]
        assert setting.state("t0+t1") is GangState.TRAIN
        assert setting.book.repairing == {"t0+t1"}
        await until(lambda: not setting.book.repairing)
        assert setting.trainers.members == ["t0", "t1"]
        assert [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"] == ["t1"]
        assert setting.counters.worker_failures == 1

    run(scenario, gangs=(GANGS[0], GANGS[2]))


# Workers that die while nobody calls them


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


# Nodes that come and go


def a_node(name: str, *, draining: bool = False, **counts: int) -> Node:
    return Node(id=name, name=name, counts=counts, is_draining=draining)


ON_NODES = tuple(make_gang(f"cpu/{number}", node_id="ab"[number % 2]) for number in range(4))
"""Three train, two of them on node a, and one on node b rolls out."""


class NewcomersRollOut(Policy[None]):
    """Gives whoever is idle the rollout role."""

    def initial_state(self) -> None:
        pass

    def decide(self, observation: Observation, state: None) -> tuple[Plan, None]:
        idle = [gang for gang in observation.gangs if gang.idle]
        return Plan(moves=tuple(Move(gang_id=gang.id, to=Role.ROLLOUT) for gang in idle[:1]), reason="script"), None


def run_with_nodes(scenario: Callable[[Setting], Awaitable[None]], **changes: Any) -> None:
    async def watched(setting: Setting) -> None:
        setting.nodes = (a_node("a", cpu=2), a_node("b", cpu=2))
        watching = setting.context.tasks.create_task(setting.watch.watch())
        await scenario(setting)
        watching.cancel()

    run(watched, gangs=ON_NODES, **changes)


def test_a_node_that_joins_adds_idle_gangs_whose_role_the_policy_decides() -> None:
    async def scenario(setting: Setting) -> None:
        setting.nodes = (*setting.nodes, a_node("c", cpu=1))
        await until(lambda: "cpu/4" in setting.reallocation.table.gang_ids)
        await until(lambda: setting.state("cpu/4") is GangState.ROLLOUT)
        assert ("cpu/4", "START") in setting.fleet.log
        assert setting.counters.moves_to_rollout == 0, "it had no role before"
        assert setting.log[-1] == "replicas join cpu/4"

    run_with_nodes(scenario, policy=NewcomersRollOut())


def test_a_node_that_says_that_it_leaves_is_emptied_and_gone_without_a_failure() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.recovery.roles.give_up(setting.book["cpu/2"], "test")
        await setting.recovery.roles.take(setting.book["cpu/2"], Role.ROLLOUT, "test")
        setting.log.clear()
        setting.nodes = (a_node("a", cpu=2), a_node("b", draining=True, cpu=2))
        await until(lambda: {setting.state(gang_id) for gang_id in ("cpu/1", "cpu/3")} == {GangState.GONE})
        assert sorted(setting.log) == ["replicas leave cpu/3", "trainers remove cpu/1"]
        assert (setting.counters.worker_failures, setting.records(FailureEvent)) == (0, [])
        assert {slot_id for slot_id, what in setting.fleet.log if what == "KILL"} == {"cpu/1", "cpu/3"}
        last = {event.slot_id: event.owner for event in setting.records(SlotEvent)}
        assert (last["cpu/1"], last["cpu/3"]) == ("gone", "gone")
        setting.nodes = (a_node("a", cpu=2),)
        await settled()
        assert setting.counters.worker_failures == 0

    run_with_nodes(scenario)


def test_the_last_of_a_role_leaves_when_another_has_it() -> None:
    async def scenario(setting: Setting) -> None:
        setting.nodes = (a_node("a", cpu=2), a_node("b", draining=True, cpu=2))
        await until(lambda: setting.state("cpu/1") is GangState.GONE)
        await settled()
        assert setting.state("cpu/3") is GangState.ROLLOUT, "nobody else rolls out"
        assert setting.reallocation.observe().gangs[-1].leaving
        await setting.recovery.roles.give_up(setting.book["cpu/2"], "test")
        await setting.recovery.roles.take(setting.book["cpu/2"], Role.ROLLOUT, "test")
        await until(lambda: setting.state("cpu/3") is GangState.GONE)

    run_with_nodes(scenario)


def test_a_gang_that_dies_while_it_is_emptied_is_gone_and_not_replaced() -> None:
    async def scenario(setting: Setting) -> None:
        setting.trainers.failures["remove"] = WorkerLostError("its process died")
        setting.nodes = (a_node("a", cpu=2), a_node("b", draining=True, cpu=2))
        await until(lambda: setting.state("cpu/1") is GangState.GONE)
        assert setting.counters.worker_failures == 0
        assert not [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"]

    run_with_nodes(scenario)


def test_a_worker_that_cannot_be_replaced_since_its_node_has_left_is_lost_once() -> None:
    """Its loss is noticed before the cluster knows of that of the node."""

    async def scenario(setting: Setting) -> None:
        class NodeLeaves(WorkerLostError):
            def __init__(self) -> None:
                super().__init__("its process died")
                setting.nodes = (a_node("a", cpu=2),)

        setting.fleet.restart_failures = [NodeLeaves]  # type: ignore[list-item]
        setting.lose("cpu/3", Role.ROLLOUT)
        await until(lambda: setting.state("cpu/3") is GangState.GONE)
        assert [event.slot_id for event in setting.records(FailureEvent)] == ["cpu/3"]

    run_with_nodes(scenario)


@pytest.mark.parametrize("noticed_first_by", ["the watch", "whoever works with it"])
def test_a_node_that_vanishes_is_one_loss_and_its_gangs_are_not_started_again(noticed_first_by: str) -> None:
    async def scenario(setting: Setting) -> None:
        setting.nodes = (a_node("a", cpu=2),)
        if noticed_first_by == "the watch":
            await until(lambda: bool(setting.book.leaving))
        setting.lose("cpu/1", Role.TRAIN)
        setting.lose("cpu/3", Role.ROLLOUT)
        await until(lambda: {setting.state(gang_id) for gang_id in ("cpu/1", "cpu/3")} == {GangState.GONE})
        assert not [slot_id for slot_id, what in setting.fleet.log if what == "RESTART"]
        assert setting.counters.worker_failures == (1 if noticed_first_by == "the watch" else 2)

    run_with_nodes(scenario)
