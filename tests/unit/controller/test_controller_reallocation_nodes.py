"""Nodes that come and go: their gangs are added, emptied, or lost at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from controller_fakes import make_gang, settled, until
from reallocation_setting import Setting, run

from rlserve.errors import WorkerLostError
from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import Move, Observation, Plan, Policy
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Node
from rlserve.tracking.events import FailureEvent, SlotEvent


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
