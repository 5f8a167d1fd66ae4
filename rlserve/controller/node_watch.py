"""Nodes that come and go while a run goes on.

::

    every manager.interval_s:   which nodes are there? ──► plan_changes (pure) ──► newcomers   workers start beside the
                                                                                              run; idle gangs
                                                                              ──► leaving     emptied, then gone
                                                                              ──► vanished    lost, and gone

A gang that is emptied gives its role up as in a move, as soon as another has that role too (which the policy sees to):
its requests move on with their tokens, its trainers leave at a step boundary. Nothing of it counts as a failure. A node
that vanishes without a notice is one lost worker to the limit of ``pool.max_worker_failures``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlserve.controller.context import RunContext
from rlserve.controller.gang_book import ROLES, GangBook
from rlserve.controller.ports import Fleet, NodeSource
from rlserve.controller.recovery import Recovery
from rlserve.manager.gang_table import GangState
from rlserve.pool.base import WorkerSpec
from rlserve.pool.config import SlotGroupConfig
from rlserve.pool.gangs import Gang, Node, cut_newcomers
from rlserve.pool.slots import Slot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PoolChanges:
    """What has changed since the gangs were last looked at."""

    newcomers: tuple[Gang, ...] = ()
    leaving: tuple[Gang, ...] = ()
    """Their nodes are there, and have said that they will leave."""
    vanished: tuple[Gang, ...] = ()


def plan_changes(
    nodes: Sequence[Node],
    *,
    present: Sequence[Gang],
    gone: Iterable[Gang],
    wanted: Literal["auto"] | Sequence[SlotGroupConfig],
    gang_size: int,
) -> PoolChanges:
    """Compare the nodes that are there with the gangs that the run has; ``wanted`` are the pool's configured slots."""
    by_id = {node.id: node for node in nodes}
    placed = [gang for gang in present if gang.node_id is not None]
    vanished = tuple(gang for gang in placed if gang.node_id not in by_id)
    still_there = [gang for gang in present if gang not in vanished]
    return PoolChanges(
        newcomers=cut_newcomers(wanted, gang_size, nodes=nodes, present=still_there, gone=[*gone, *vanished]).gangs,
        leaving=tuple(gang for gang in still_there if gang.node_id in by_id and by_id[gang.node_id].is_draining),
        vanished=vanished,
    )


class NodeWatch:
    """Keeps the gangs of a run in step with the nodes of its cluster."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        recovery: Recovery,
        *,
        fleet: Fleet,
        nodes: NodeSource,
        plan: Callable[..., PoolChanges],
        spec_of: Callable[[Slot], WorkerSpec],
        interval_s: float,
    ) -> None:
        """``plan`` is :func:`plan_changes` with the run's pool."""
        self._run = run
        self._book = book
        self._recovery = recovery
        self._fleet = fleet
        self._nodes = nodes
        self._plan = plan
        self._spec_of = spec_of
        self._interval_s = interval_s

    async def watch(self) -> None:
        """Look at the nodes until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            nodes = await self._nodes()
            changes = self._plan(nodes, present=self._book.present, gone=self._book.gone)
            names: Mapping[str | None, str] = {node.id: node.name for node in nodes}
            self._drop(changes.vanished)
            for node_id in {gang.node_id for gang in changes.leaving}:
                self.drain(node_id, f"node {names[node_id]} is going to leave the cluster")
            for gang in changes.newcomers:
                logger.info("%s joins, on node %s", gang.id, names[gang.node_id])
                self._book.add(gang)
                self._recovery.spawn(self._recovery.guard(gang, None, self._start(gang)))

    def drain(self, node_id: str | None, reason: str) -> None:
        """Empty the gangs of a node for good. May be called again and again: a notice is the same if repeated."""
        for gang in self._book.present:
            if gang.node_id == node_id and gang.id not in self._book.leaving:
                logger.warning("%s is being emptied: %s", gang.id, reason)
                self._book.leaving[gang.id] = reason
                self._recovery.spawn(self._empty(gang))

    def _drop(self, gangs: Iterable[Gang]) -> None:
        """Gangs are lost with their nodes: whoever waits for one, or calls it next, reports it, and it is gone."""
        reason = "its node has left the cluster without notice"
        node_ids = set()
        for gang in gangs:
            if self._book.leaving.get(gang.id) != reason:
                if gang.id not in self._book.leaving:
                    node_ids.add(gang.node_id)
                self._book.leaving[gang.id] = reason
                for slot_id in gang.slot_ids:
                    self._fleet.kill(slot_id, f"{slot_id}: {reason}")
                if self._book.state(gang) is GangState.IDLE:
                    self._book.move(gang, GangState.GONE, reason)
        self._run.counters.worker_failures += len(node_ids)

    async def _start(self, gang: Gang) -> None:
        await self._fleet.start([(slot, self._spec_of(slot)) for slot in gang.slots])
        self._recovery.come_up(gang, gang.slot_ids)

    async def _empty(self, gang: Gang) -> None:
        """Let a gang give up whatever role it has, as soon as another has it too; then it is gone."""

        def may_leave() -> bool:
            state = self._book.state(gang)
            return state in (GangState.IDLE, GangState.GONE) or (state in ROLES and self._book.has_other(gang))

        while self._book.state(gang) is not GangState.GONE:
            await self._run.changed.wait_for(may_leave, f"{gang.id} to leave")
            async with self._recovery.moving:
                if may_leave() and self._book.state(gang) is not GangState.GONE:
                    await self._recovery.guard(gang, None, self._leave(gang))

    async def _leave(self, gang: Gang) -> None:
        reason = self._book.leaving[gang.id]
        if await self._recovery.roles.give_up(gang, reason):
            self._book.move(gang, GangState.GONE, reason)
            for slot_id in gang.slot_ids:
                self._fleet.kill(slot_id, reason)
            logger.info("%s is empty and leaves", gang.id)
