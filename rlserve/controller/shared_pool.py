"""A run's part of a cluster that it shares with other runs.

::

    every second:  what the run has, and could use ──► broker ──► what it may have now
                                                                    │
          more than it has: the slots of nodes, as a run alone sees them ──► node watch ──► newcomers
          less: gangs are emptied, as after a notice, and then lent ──► departures

Which gangs are lent is decided here, purely: those without a role and those that roll out first, but for the last that
rolls out. What trains leaves at the end of a step, and only where others have claims to a floor.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rlserve.controller.context import RunContext
from rlserve.controller.departures import Departures
from rlserve.controller.gang_book import GangBook
from rlserve.controller.ports import NodeSource, Sharing
from rlserve.errors import PoolError
from rlserve.manager.gang_table import SERVING, GangState
from rlserve.pool.gangs import Gang, Node
from rlserve.pool.notices.base import Notice
from rlserve.pool.sharing.base import Allowance, HeldSlots, Place, by_type
from rlserve.tracking.share_event import ShareEvent

logger = logging.getLogger(__name__)

CLAIM_INTERVAL_S = 1.0
"""Between two claims, at most."""
_ROLLING_OUT = (*SERVING, GangState.LEAVING_ROLLOUT, GangState.JOINING_ROLLOUT)
_TRAINING = (GangState.TRAIN, GangState.LEAVING_TRAIN, GangState.JOINING_TRAIN)


@dataclass(frozen=True, kw_only=True)
class HeldGang:
    """A gang, as lending looks at it."""

    gang: Gang
    state: GangState
    leaving: bool

    @property
    def place(self) -> Place:
        """Where its slots are."""
        return place_of(self.gang)

    @property
    def rolls_out(self) -> bool:
        """Whether it does, or is about to."""
        return self.state in _ROLLING_OUT

    @property
    def trains(self) -> bool:
        """Whether it does, or is about to."""
        return self.state in _TRAINING


def place_of(gang: Gang) -> Place:
    """Where the slots of a gang are."""
    assert gang.node_id is not None, "only slots of a cluster are shared"
    return gang.node_id, gang.slots[0].type.name


def holding_of(gangs: Sequence[HeldGang]) -> HeldSlots:
    """What a run with these gangs tells the broker: all but the trainers, and the last gang that rolls out, may be
    lent."""
    lendable = [each for each in gangs if each.leaving or not (each.trains or each.rolls_out)]
    staying = [each for each in gangs if each.rolls_out and not each.leaving]
    return HeldSlots(
        held=_count(gangs),
        lendable=_count([*lendable, *staying[1:]]),
        leaving=_count(each for each in gangs if each.leaving),
    )


def gangs_to_lend(gangs: Sequence[HeldGang], allowed: Mapping[Place, int]) -> tuple[Gang, ...]:
    """Which gangs leave so that no more is left than is allowed in each of the places that ``allowed`` names: what has
    no role, what rolls out, then what trains, the newest first. The last that rolls out and the last that trains stay
    as long as anything else is there."""
    staying = [each for each in gangs if not each.leaving]
    found: list[Gang] = []
    for place, count in allowed.items():
        spare = sum(len(each.gang.slots) for each in staying if each.place == place) - count
        while spare > 0 and (here := [each for each in staying if each.place == place]):
            chosen = min(reversed(here), key=lambda each: _rank(each, staying))
            staying.remove(chosen)
            found.append(chosen.gang)
            spare -= len(chosen.gang.slots)
    return tuple(found)


def _rank(gang: HeldGang, staying: Sequence[HeldGang]) -> int:
    if gang.rolls_out:
        return 1 if sum(each.rolls_out for each in staying) > 1 else 3
    if gang.trains:
        return 2 if sum(each.trains for each in staying) > 1 else 4
    return 0


def within(nodes: Iterable[Node], allowed: Mapping[Place, int]) -> tuple[Node, ...]:
    """The nodes as a run may see them: with the slots that it may have."""
    return tuple(
        replace(node, counts={name: min(count, allowed.get((node.id, name), 0)) for name, count in node.counts.items()})
        for node in nodes
    )


def _count(gangs: Iterable[HeldGang]) -> Mapping[Place, int]:
    slots: Counter[Place] = Counter()
    for each in gangs:
        slots[each.place] += len(each.gang.slots)
    return dict(slots)


def share_event(allowance: Allowance, time_s: float) -> ShareEvent:
    """What is written down of an answer of the broker."""
    runs = Counter[str]()
    for each in allowance.neighbours:
        runs[each.name] += each.num_slots
    return ShareEvent(
        time_s=time_s,
        slots=dict(by_type(allowance.slots)),
        num_lent=allowance.num_lent,
        num_borrowed=allowance.num_borrowed,
        num_owed=allowance.num_owed,
        runs=dict(runs),
    )


class SharedPool:
    """Claims what the run needs, lends what others have a claim to, and shows the run what it may take."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        departures: Departures,
        *,
        sharing: Sharing,
        nodes: NodeSource,
        useful: Callable[[int], int | None],
        lend_timeout_s: float,
    ) -> None:
        """``useful`` says how many slots the run could use now, of the number that it has; ``lend_timeout_s`` is how
        long a gang may take to be empty."""
        self._run = run
        self._book = book
        self._departures = departures
        self._sharing = sharing
        self._nodes = nodes
        self._useful = useful
        self._lend_timeout_s = lend_timeout_s
        self.allowance = sharing.allowance
        self._told: ShareEvent | None = None

    async def nodes(self) -> tuple[Node, ...]:
        """The nodes of the cluster with what the run may have of them; claims it, and lends what it may not."""
        nodes = await self._nodes()
        gangs = self._gangs()
        holding = holding_of(gangs)
        try:
            useful = self._useful(sum(holding.held.values()))
            self.allowance = await asyncio.to_thread(self._sharing.claim, holding, useful)
        except PoolError as error:
            logger.warning("%s: nothing is lent or borrowed until it does", error)
            return within(nodes, holding.held)
        self._lend(self.allowance)
        self._tell(self.allowance)
        return within(nodes, self.allowance.slots)

    def _gangs(self) -> list[HeldGang]:
        return [
            HeldGang(gang=gang, state=self._book.state(gang), leaving=gang.id in self._book.leaving)
            for gang in self._book.present
        ]

    def _lend(self, allowance: Allowance) -> None:
        gangs = gangs_to_lend(self._gangs(), allowance.slots)
        if not gangs:
            return
        others = ", ".join(f"{each.name} (priority {each.priority})" for each in allowance.neighbours)
        self._book.given_back.update(gang.id for gang in gangs)
        self._departures.announce(
            gangs, Notice(reason=f"its slots are lent to another run: {others}", grace_s=self._lend_timeout_s)
        )

    def _tell(self, allowance: Allowance) -> None:
        told = share_event(allowance, self._run.clock.now())
        if self._told is None or replace(told, time_s=self._told.time_s) != self._told:
            self._told = told
            self._run.events.emit(told)
