"""Nodes that come and go while a run goes on.

::

    every manager.interval_s:   which nodes are there? ──► plan_changes (pure) ──► newcomers   workers start beside the
                                                                                              run; idle gangs
                                                                              ──► leaving     emptied, then gone
                                                                              ──► vanished    lost, and gone

How a gang is emptied is in ``rlserve.controller.departures``. A node that vanishes without a notice is one lost worker
to the limit of ``pool.max_worker_failures``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rlserve.controller.context import RunContext
from rlserve.controller.departures import Departures
from rlserve.controller.gang_book import GangBook
from rlserve.controller.ports import NodeSource
from rlserve.controller.recovery import Recovery
from rlserve.pool.config import SlotGroupConfig
from rlserve.pool.gangs import Gang, Node, cut_newcomers
from rlserve.pool.notices.base import Notice

logger = logging.getLogger(__name__)

_VANISHED = "its node has left the cluster without notice"


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
    auto_prefer: Mapping[str, Literal["train", "rollout"]] = MappingProxyType({}),
    asked: Mapping[str, int] = MappingProxyType({}),
    given_back: Collection[str] = (),
) -> PoolChanges:
    """Compare the nodes that are there with the gangs that the run has; ``wanted`` are the pool's configured slots,
    and ``auto_prefer`` is its own. ``asked`` are slots of types that it grows by, and ``given_back`` those of the gone
    whose slots may be taken again (``cut_newcomers``)."""
    by_id = {node.id: node for node in nodes}
    placed = [gang for gang in present if gang.node_id is not None]
    vanished = tuple(gang for gang in placed if gang.node_id not in by_id)
    still_there = [gang for gang in present if gang not in vanished]
    return PoolChanges(
        newcomers=cut_newcomers(
            wanted,
            gang_size,
            nodes=nodes,
            present=still_there,
            gone=[*gone, *vanished],
            auto_prefer=auto_prefer,
            asked=asked,
            given_back=given_back,
        ).gangs,
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
        departures: Departures,
        *,
        nodes: NodeSource,
        plan: Callable[..., PoolChanges],
        start: Callable[[Gang], Awaitable[None]],
        interval_s: float,
    ) -> None:
        """``plan`` is :func:`plan_changes` with the run's pool; ``start`` starts the workers of a gang."""
        self._run = run
        self._book = book
        self._recovery = recovery
        self._departures = departures
        self._nodes = nodes
        self._plan = plan
        self._start_workers = start
        self._interval_s = interval_s

    async def watch(self) -> None:
        """Look at the nodes until cancelled."""
        while True:
            await self._run.clock.sleep(self._interval_s)
            nodes = await self._nodes()
            book = self._book
            changes = self._plan(nodes, present=book.present, gone=book.gone, given_back=book.given_back)
            names: Mapping[str | None, str] = {node.id: node.name for node in nodes}
            self._drop(changes.vanished)
            for node in nodes:
                if node.is_draining:
                    notice = Notice(reason=f"node {node.name} is going to leave the cluster", grace_s=node.grace_s)
                    self._departures.announce([gang for gang in changes.leaving if gang.node_id == node.id], notice)
            for gang in changes.newcomers:
                logger.info("%s joins, on node %s", gang.id, names[gang.node_id])
                self._book.add(gang)
                self._recovery.spawn(self._recovery.guard(gang, None, self._start(gang)))

    def _drop(self, gangs: Iterable[Gang]) -> None:
        """Gangs are lost with their nodes, each of which counts as one loss, but after a notice."""
        new = [gang for gang in gangs if self._book.leaving.get(gang.id) != _VANISHED]
        node_ids = {gang.node_id for gang in new if gang.id not in self._book.leaving}
        self._departures.lose(new, _VANISHED)
        self._run.counters.worker_failures += len(node_ids)

    async def _start(self, gang: Gang) -> None:
        await self._start_workers(gang)
        self._recovery.come_up(gang, gang.slot_ids)
