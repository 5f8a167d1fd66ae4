"""A run that grows: the policy of real runs, and a cluster that starts each node that is asked for.

::

    every few seconds:  wish ──► decide ──► more: a node starts, joins, and the policy gives its gangs a role
                                   └──────► fewer: one that starts is called off, one that is there emptied; it ends

A node is paid for from its start until it has ended, which it does as soon as it is empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import GangView
from rlserve.manager.policies.rate_memory import RateState, note_observation
from rlserve.manager.roles import Role
from rlserve.manager.scale_out.base import AskState, NodeType, NodeView, Situation, Terms
from rlserve.manager.scale_out.decide import decide, price_per_hour
from rlserve.manager.scale_out.wish import wish_of
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.departures import Departures
from rlserve.simulate.reallocation import Reallocation
from rlserve.tracking.cost.prices import Prices

_LOOKS = 6
"""In the time that a wish must last; once in 10 s at least."""


@dataclass(kw_only=True, eq=False)
class _Node:
    id: str
    kind: NodeType
    gang_ids: tuple[str, ...]
    is_first: bool = False
    """The run began with it."""
    has_joined: bool = False
    is_ending: bool = False
    gone: set[str] = field(default_factory=set)


class SimulatedScaleOut:
    """Asks, and is given."""

    def __init__(
        self,
        clock: Clock,
        reallocation: Reallocation,
        departures: Departures,
        *,
        terms: Terms,
        prices: Prices | None,
        start_s: float,
    ) -> None:
        """``start_s``: of a node that is asked for, until its gangs have joined."""
        self._clock = clock
        self._reallocation = reallocation
        self._departures = departures
        self._terms = terms
        self._prices = prices
        self._start_s = start_s
        self._nodes = [node for kind in terms.types for node in _first_nodes(kind, reallocation.gangs.values())]
        self._num_started = 0
        self._state, self._memory = AskState(), RateState()
        self.gang_s = 0.0
        """Of all gangs that were added, from their start to their end or until it was counted last."""
        self._counted_s = 0.0
        self.peak_per_hour: float | None = None
        """Most that all slots cost an hour; None where prices are missing."""

    def run(self) -> Process:
        """Decide and ask, until the end of time."""
        interval_s = min(10.0, max(1.0, self._terms.grow_after_s / _LOOKS))
        while True:
            yield interval_s
            self._look()

    def closed(self) -> tuple[float, float | None]:
        """Gang seconds that were added until now, and the most that all slots cost an hour."""
        self._count()
        return self.gang_s, self.peak_per_hour

    def _look(self) -> None:
        self._count()
        observation = self._reallocation.observe()
        self._memory = note_observation(self._memory, observation)
        other_price = self._other_price(observation.gangs)
        wish = wish_of(observation, self._memory, self._terms, self._state.asked, other_price_per_hour=other_price)
        situation = Situation(
            time_s=self._clock.now_s,
            num_wanted=wish.num_gangs,
            why=wish.why,
            nodes=tuple(
                NodeView(id=node.id, type=node.kind.name, is_ending=node.is_ending, trains=self._trains(node))
                for node in self._nodes
                if node.has_joined
            ),
            num_other_gangs=sum(not self._is_grown(gang) for gang in observation.staying),
            other_price_per_hour=other_price or 0.0,
        )
        decision, self._state = decide(situation, self._state, self._terms)
        price = price_per_hour(decision.asked, situation, self._terms)
        if price is not None and other_price is not None:
            self.peak_per_hour = max(price, self.peak_per_hour or 0.0)
        for node in self._nodes:
            if node.id in decision.give_up:
                self._end(node)
        for kind in self._terms.types:
            here = [node for node in self._nodes if node.kind is kind and not node.is_ending]
            for _ in range(decision.asked[kind.name] - len(here)):
                self._clock.start(self._start(kind))
            num_more = max(0, len(here) - decision.asked[kind.name])
            for node in [each for each in reversed(here) if not each.has_joined][:num_more]:
                self._call_off(node)

    def _start(self, kind: NodeType) -> Process:
        self._num_started += 1
        name, size = f"grown/{self._num_started}", kind.num_slots // kind.num_gangs
        gangs = [
            GangView(
                id=f"{kind.name}/{name}/{number}",
                type=kind.name,
                num_slots=size,
                figures=kind.figures,
                prefer=Role.ROLLOUT,
                may_train=kind.may_train,
            )
            for number in range(kind.num_gangs)
        ]
        node = _Node(id=name, kind=kind, gang_ids=tuple(gang.id for gang in gangs))
        self._nodes.append(node)
        for gang in gangs:
            self._reallocation.add(gang)
        yield self._start_s
        if node in self._nodes:
            node.has_joined = True
            for gang in gangs:
                self._reallocation.enter(gang.id, GangState.IDLE, "its node has joined")

    def _call_off(self, node: _Node) -> None:
        self._nodes.remove(node)
        for gang_id in node.gang_ids:
            for state in (GangState.IDLE, GangState.GONE):
                self._reallocation.enter(gang_id, state, "its node is not wanted any more")

    def _end(self, node: _Node) -> None:
        node.is_ending = True

        def note_gone(gang_id: str) -> None:
            node.gone.add(gang_id)
            if len(node.gone) == len(node.gang_ids):
                self._count()
                self._nodes.remove(node)

        for gang_id in node.gang_ids:
            self._departures.leave(gang_id, on_gone=note_gone)

    def _trains(self, node: _Node) -> bool:
        return any(self._reallocation.table.state(gang_id) is GangState.TRAIN for gang_id in node.gang_ids)

    def _is_grown(self, gang: GangView) -> bool:
        return any(gang.type == each.name for each in self._terms.types)

    def _other_price(self, gangs: tuple[GangView, ...]) -> float | None:
        found = Counter[str]()
        for gang in gangs:
            if not self._is_grown(gang):
                found[gang.type] += gang.num_slots
        prices = [None if self._prices is None else self._prices.of(name) for name in found]
        if any(price is None for price in prices):
            return None
        return sum((price or 0.0) * count for price, count in zip(prices, found.values(), strict=True))

    def _count(self) -> None:
        now_s = self._clock.now_s
        num_gangs = sum(node.kind.num_gangs for node in self._nodes if not node.is_first)
        self.gang_s += (now_s - self._counted_s) * num_gangs
        self._counted_s = now_s


def _first_nodes(kind: NodeType, gangs: Iterable[GangView]) -> list[_Node]:
    """Those that the pool has of a type from the beginning."""
    ids = [gang.id for gang in gangs if gang.type == kind.name]
    parts = [tuple(ids[first : first + kind.num_gangs]) for first in range(0, len(ids), kind.num_gangs)]
    return [_Node(id=part[0], kind=kind, gang_ids=part, is_first=True, has_joined=True) for part in parts]
