"""Nodes that are asked for, and given back: the shell around ``rlserve.manager.scale_out``.

::

    every manager.interval_s:   wish (pure) ──► decide (pure) ──► the cluster is asked for nodes
                                                    │    └──────► departures: a node is emptied
                                                    ▼
    node watch: which nodes are there? ──► changes: newcomers are taken up to what is asked for, and can be paid

The cluster's autoscaler starts what is asked for and ends nodes that have been idle for its time, which those that were
emptied are. What is asked holds until it is asked anew, so the run asks for nothing when it ends.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from rlserve.controller.context import RunContext
from rlserve.controller.departures import Departures
from rlserve.controller.gang_book import ROLES, GangBook
from rlserve.controller.node_watch import PoolChanges
from rlserve.controller.ports import NodeRequest
from rlserve.errors import PoolError
from rlserve.manager.policies.base import Observation
from rlserve.manager.policies.rate_memory import RateState, note_observation
from rlserve.manager.roles import Role
from rlserve.manager.scale_out.base import AskState, Decision, NodeView, Situation, Terms
from rlserve.manager.scale_out.decide import decide, price_per_hour
from rlserve.manager.scale_out.wish import Wish, wish_of
from rlserve.pool.autoscaler import NodeShape
from rlserve.pool.gangs import Gang, Node
from rlserve.pool.notices.base import Notice
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.events import ScaleOutEvent
from rlserve.tracking.live import LiveScaleOut

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 30.0
"""What was asked is asked anew: a cluster's head may have been replaced meanwhile."""
_NO_MORE_USE = "the run has no more use for its node"


class ScaleOut:
    """Keeps what is asked of the cluster in step with what the run has use for."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        departures: Departures,
        terms: Terms,
        prices: Prices | None,
        *,
        observe: Callable[[], Observation],
        request: NodeRequest,
        interval_s: float,
    ) -> None:
        self._run = run
        self._book = book
        self._departures = departures
        self._terms = terms
        self._prices = prices
        self._types = {each.name: each for each in terms.types}
        self._observe = observe
        self._request = request
        self._interval_s = interval_s
        self._nodes: Sequence[Node] | None = None
        self._state = AskState()
        self._memory = RateState()
        self._asked: Mapping[str, int] = {}
        self._asked_at_s: float | None = None
        self._told = set[str]()
        self._obstacle: str | None = None
        """The last that was told."""
        self.money_per_hour: float | None = None
        """Of all slots of the run, as far as they have prices; those included that are still to come."""

    async def run(self) -> None:
        """Decide and ask until cancelled."""
        while True:
            await self._run.clock.sleep(self._interval_s)
            if self._nodes is not None:
                await self.look(self._nodes)

    def changes(
        self,
        plan: Callable[..., PoolChanges],
        nodes: Sequence[Node],
        *,
        present: Sequence[Gang],
        gone: Sequence[Gang],
        given_back: Collection[str],
    ) -> PoolChanges:
        """What ``plan`` (``plan_changes``) makes of the nodes that are there, with newcomers as far as they are asked
        for and can be paid."""
        self._nodes = nodes
        planned = plan(nodes, present=present, gone=gone, asked=self.asked_slots, given_back=given_back)
        return replace(planned, newcomers=self._affordable(planned.newcomers))

    @property
    def asked_slots(self) -> Mapping[str, int]:
        """Slots by type that the run has or waits for; before the first decision those that it has."""
        if self._asked_at_s is None:
            return self._slots()
        return {name: number * self._types[name].num_slots for name, number in self._asked.items()}

    def live(self) -> LiveScaleOut:
        """What is asked for now, for people."""
        return LiveScaleOut(
            asked=self.asked_slots,
            present=self._slots(),
            max_slots={each.name: each.max_nodes * each.num_slots for each in self._terms.types},
            money_per_hour=self.money_per_hour,
            budget_per_hour=self._terms.money_per_hour,
        )

    def metrics(self) -> Mapping[str, float]:
        """What is asked for now."""
        prices = {"cost/money_per_hour": self.money_per_hour, "cost/money_per_hour_limit": self._terms.money_per_hour}
        return {
            "pool/num_wanted": self._num_wanted,
            "pool/num_asked": sum(self.asked_slots.values()),
            "pool/num_grown": sum(self._slots().values()),
            **{name: price for name, price in prices.items() if price is not None},
        }

    @property
    def _num_wanted(self) -> int:
        """Slots of the types that it grows by that the run has use for, of as many as it may have at all; before the
        first decision those it has."""
        if self._state.target is None:
            return sum(self.asked_slots.values())
        types = self._terms.types
        most = sum(each.max_nodes * each.num_slots for each in types)
        return min(self._state.target * types[0].num_slots // types[0].num_gangs, most)

    def _affordable(self, newcomers: Sequence[Gang]) -> tuple[Gang, ...]:
        """Those which the budget has room for: nodes of other types may come unasked."""
        budget = self._terms.money_per_hour
        if budget is None:
            return tuple(newcomers)
        taken, price = list[Gang](), self.money_per_hour or 0.0
        for gang in newcomers:
            name = gang.slots[0].type.name
            more = None if name in self._types else self._price(name, len(gang.slots))
            if name not in self._types and (more is None or price + more > budget):
                if gang.id not in self._told:
                    self._told.add(gang.id)
                    logger.warning("%s is not taken: scale_out.money_per_hour=%g has no room for it", gang.id, budget)
                continue
            price += more or 0.0
            taken.append(gang)
        return tuple(taken)

    async def look(self, nodes: Sequence[Node]) -> None:
        """Decide anew, ask for what is wanted now, and empty what is not."""
        observation = self._observe()
        self._memory = note_observation(self._memory, observation)
        wish = wish_of(
            observation,
            self._memory,
            self._terms,
            self._asked,
            other_price_per_hour=self._other_price(),
        )
        situation = self._situation(nodes, wish)
        decision, self._state = decide(situation, self._state, self._terms)
        self.money_per_hour = price_per_hour(decision.asked, situation, self._terms)
        await self._ask(decision)
        self._empty(decision.give_up)

    async def close(self) -> None:
        """The run has ended: its nodes may go."""
        if self._asked_at_s is not None:
            await self._request_or_warn(())

    async def _ask(self, decision: Decision) -> None:
        now_s, is_new = self._run.clock.now(), dict(decision.asked) != dict(self._asked) or self._asked_at_s is None
        for name, number in decision.late.items():
            logger.warning("%d node(s) of %s did not come in time, and are asked for no more", number, name)
        if is_new or decision.late or decision.obstacle not in (None, self._obstacle):
            self._tell(decision)
        self._obstacle = decision.obstacle or self._obstacle
        if is_new or now_s - (self._asked_at_s or 0.0) >= _ASK_AGAIN_S:
            self._asked, self._asked_at_s = dict(decision.asked), now_s
            await self._request_or_warn(
                [
                    NodeShape(type=name, num_slots=self._types[name].num_slots, num_nodes=number)
                    for name, number in decision.asked.items()
                    if number
                ]
            )

    async def _request_or_warn(self, shapes: Sequence[NodeShape]) -> None:
        """Training goes on without more nodes; they are asked for again."""
        try:
            await self._request(shapes)
        except PoolError as error:
            logger.warning("%s", error)

    def _tell(self, decision: Decision) -> None:
        slots = {name: number * self._types[name].num_slots for name, number in decision.asked.items()}
        late = {name: number * self._types[name].num_slots for name, number in decision.late.items()}
        logger.info("asked of the cluster: %s (%s)", _in_words(slots), decision.reason)
        self._run.events.emit(
            ScaleOutEvent(
                time_s=self._run.clock.now(),
                asked=slots,
                present={name: count for name, count in self._slots().items() if count},
                late=late,
                money_per_hour=self.money_per_hour,
                reason=decision.reason,
            )
        )

    def _empty(self, node_ids: Sequence[str]) -> None:
        gangs = [gang for gang in self._book.present if gang.node_id in node_ids and self._type(gang) in self._types]
        self._book.given_back |= {gang.id for gang in gangs}
        self._departures.announce(gangs, Notice(reason=_NO_MORE_USE))

    def _situation(self, nodes: Sequence[Node], wish: Wish) -> Situation:
        others = [gang for gang in self._staying() if self._type(gang) not in self._types]
        return Situation(
            time_s=self._run.clock.now(),
            num_wanted=wish.num_gangs,
            why=wish.why,
            nodes=tuple(self._views(nodes)),
            num_other_gangs=len(others),
            other_price_per_hour=self._other_price() or 0.0,
        )

    def _views(self, nodes: Sequence[Node]) -> list[NodeView]:
        """Of nodes that the run has slots of, or had and that are still there."""
        there, staying = {node.id for node in nodes}, {gang.id for gang in self._staying()}
        by_node = dict[tuple[str, str], list[Gang]]()
        for gang in (*self._book.present, *self._book.gone):
            if self._type(gang) in self._types and gang.node_id in there:
                by_node.setdefault((gang.node_id or "", self._type(gang)), []).append(gang)
        return [
            NodeView(
                id=node_id,
                type=name,
                is_ending=not any(gang.id in staying for gang in gangs),
                trains=any(ROLES.get(self._book.state(gang)) is Role.TRAIN for gang in gangs),
            )
            for (node_id, name), gangs in by_node.items()
        ]

    def _staying(self) -> list[Gang]:
        return [gang for gang in self._book.present if gang.id not in self._book.leaving]

    def _slots(self) -> dict[str, int]:
        """That the run has, of each type that it grows by."""
        found = Counter(slot.type.name for gang in self._staying() for slot in gang.slots)
        return {name: found[name] for name in self._types}

    def _other_price(self) -> float | None:
        """Of all slots of other types; None where one has no price."""
        found = Counter(slot.type.name for gang in self._book.present for slot in gang.slots)
        prices = [self._price(name, count) for name, count in found.items() if name not in self._types]
        return None if any(each is None for each in prices) else sum(each or 0.0 for each in prices)

    def _price(self, name: str, num_slots: int) -> float | None:
        price = None if self._prices is None else self._prices.of(name)
        return None if price is None else price * num_slots

    @staticmethod
    def _type(gang: Gang) -> str:
        return gang.slots[0].type.name


def _in_words(slots: Mapping[str, int]) -> str:
    return ", ".join(f"{name} × {number}" for name, number in slots.items())
