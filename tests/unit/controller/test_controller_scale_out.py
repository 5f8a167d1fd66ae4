"""The shell that asks for nodes: what is asked, which newcomers are taken, which gangs are emptied."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from controller_fakes import FakeClock, make_gang, until
from reallocation_setting import Setting

from rlserve.controller.node_watch import plan_changes
from rlserve.controller.scale_out import ScaleOut
from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import GangFigures
from rlserve.manager.scale_out.base import NodeType, Terms
from rlserve.pool.autoscaler import NodeShape, bundle
from rlserve.pool.gangs import Node
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.events import ScaleOutEvent

PRICES = Prices(currency="EUR", date="2026-11-01", per_hour={"cpu": 1.0, "cpu-b": 2.0, "cpu-c": 9.0})
CPU = GangFigures(memory_bandwidth_gb_s=20, flops_tflops=0.1)
TERMS = Terms(
    types=(NodeType(name="cpu-b", num_gangs=1, num_slots=1, max_nodes=3, price_per_hour=2.0, figures=CPU),),
    money_per_hour=7.5,
    grow_after_s=0.0,
    shrink_after_s=0.0,
    cooldown_s=0.0,
    node_timeout_s=60.0,
    retry_after_s=60.0,
)
ON_NODES = tuple(make_gang(f"cpu/{number}", node_id="a") for number in range(3))
"""Two train, one rolls out; together they cost 3 an hour."""


class Cluster(Setting):
    """What is asked for comes when the test says so. Five prompt groups wait, eight of which fit a replica."""

    def __init__(self, tasks: asyncio.TaskGroup, **changes: Any) -> None:
        self.clock = FakeClock(0.0)
        super().__init__(tasks, gangs=ON_NODES, clock=self.clock, **changes)
        self.nodes = (Node(id="a", name="a", counts={"cpu": 3}),)
        self.requests: list[list[NodeShape]] = []
        self.scale_out = ScaleOut(
            self.context,
            self.book,
            self.departures,
            TERMS,
            PRICES,
            observe=self.reallocation.observe,
            request=self.ask,
            interval_s=1.0,
        )
        self.num_waiting = 5
        self.trainer_waiting = True

    async def ask(self, shapes: Sequence[NodeShape]) -> None:
        self.requests.append(list(shapes))

    def read(self) -> Any:
        load: Any = super().read()
        return type(load)(
            num_waiting=self.num_waiting,
            client_queue=0.0,
            num_buffered=0,
            num_in_flight=0,
            trainer_waiting=self.trainer_waiting,
        )

    def come(self, node_id: str, **counts: int) -> None:
        self.nodes = (*self.nodes, Node(id=node_id, name=node_id, counts=counts or {"cpu-b": 1}))

    async def take(self) -> tuple[str, ...]:
        """What the node watch does with nodes that are there."""
        plan = partial(plan_changes, wanted="auto", gang_size=1)
        book = self.book
        changes = self.scale_out.changes(
            plan, self.nodes, present=book.present, gone=book.gone, given_back=book.given_back
        )
        for gang in changes.newcomers:
            self.book.add(gang)
            await self.start(gang)
            self.recovery.come_up(gang, gang.slot_ids)
        return tuple(gang.id for gang in changes.newcomers)

    async def look(self) -> None:  # type: ignore[override]
        self.clock.now_s += 1.0
        await self.scale_out.look(self.nodes)


def run(scenario: Callable[[Cluster], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Cluster(tasks)
            await setting.begun()
            await asyncio.wait_for(scenario(setting), 10)
            await setting.recovery.close()

    asyncio.run(whole())


def test_nodes_are_asked_for_taken_up_to_what_was_asked_and_given_back_as_long_as_nothing_waits() -> None:
    async def scenario(setting: Cluster) -> None:
        await setting.look()
        assert setting.requests == [[NodeShape(type="cpu-b", num_slots=1, num_nodes=1)]]
        (event,) = setting.records(ScaleOutEvent)
        assert (event.asked, event.present, event.money_per_hour) == ({"cpu-b": 1}, {}, 5.0)
        setting.come("b")
        setting.come("c")
        assert await setting.take() == ("cpu-b/0",), "the other was not asked for"
        setting.num_waiting = 0
        await setting.look()
        await until(lambda: setting.state("cpu-b/0") is GangState.GONE)
        assert setting.requests[-1] == []
        assert await setting.take() == (), "its node is still there, and nothing is asked for"
        setting.num_waiting = 5
        await setting.look()
        assert await setting.take() == ("cpu-b/1",), "on a node that is still there"
        await setting.scale_out.close()
        assert setting.requests[-1] == []

    run(scenario)


def test_neither_more_nodes_nor_newcomers_of_other_types_cost_more_than_the_budget() -> None:
    async def scenario(setting: Cluster) -> None:
        setting.num_waiting = 100
        await setting.look()
        assert setting.requests == [[NodeShape(type="cpu-b", num_slots=1, num_nodes=2)]], "three would cost 9"
        assert "money_per_hour" in setting.records(ScaleOutEvent)[-1].reason
        setting.come("c", **{"cpu-c": 1})
        setting.come("d", cpu=1)
        assert await setting.take() == (), "7 of 7.5 an hour are asked for"
        assert setting.scale_out.metrics() == {
            "pool/num_wanted": 3,
            "pool/num_asked": 2,
            "pool/num_grown": 0,
            "cost/money_per_hour": 7.0,
            "cost/money_per_hour_limit": 7.5,
        }

    run(scenario)


def test_what_is_asked_is_asked_again_after_a_while() -> None:
    async def scenario(setting: Cluster) -> None:
        await setting.look()
        await setting.look()
        assert len(setting.requests) == 1
        setting.clock.now_s += 30.0
        await setting.look()
        assert len(setting.requests) == 2
        assert len(setting.records(ScaleOutEvent)) == 1

    run(scenario)


def test_a_node_is_asked_for_by_what_its_slots_are_pinned_by() -> None:
    assert bundle(NodeShape(type="cpu-b", num_slots=2, num_nodes=1)) == {"cpu-b": 2.0}
    spot = bundle(NodeShape(type="H100-spot", num_slots=8, num_nodes=1))
    assert spot == {"GPU": 8.0, "accelerator_type:H100": 0.001, "spot": 0.001}
