"""The places of each group of trainers, which can be formed ahead: its workers connect while the old group steps.

::

    members of now    ├────────── step ──────────┤ join ├── step ──
    those to come        meet: connect to all ──► that group; only state is left to be sent
                              └── anybody else joins, leaves or is lost meanwhile: a new group, at the boundary
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace

from rlserve.controller.trainer_calls import TrainerCalls
from rlserve.errors import RlserveError
from rlserve.trainers.base import Membership

logger = logging.getLogger(__name__)


class GroupPlaces:
    """Counts the groups of a run, and keeps the one that has met."""

    def __init__(self, calls: TrainerCalls, *, on_one_machine: bool) -> None:
        self._calls = calls
        self._on_one_machine = on_one_machine
        self._generation = 0
        self._met: dict[str, Membership] = {}
        """By member, in order of rank; empty where none has met."""
        self._met_workers: tuple[object, ...] = ()
        """A worker that took the place of a lost one has met nobody."""

    async def meet(self, members: Sequence[str]) -> None:
        """Let workers form the group that they are to be next, beside what they do. Where that fails they form one when
        they join, and what is wrong is told then."""
        self._met = {}
        if len(members) < 2:
            return
        places: dict[str, Membership] = {}
        try:
            workers, places = self._calls.workers(members), await self._new(members)
            async with asyncio.TaskGroup() as tasks:
                for member, place in places.items():
                    tasks.create_task(self._calls.one(member, "meet_trainers", place))
        except* RlserveError as failures:
            logger.info("the trainers form their next group at the step boundary: %s", failures.exceptions[0])
            if places:
                await self._calls.break_off(places)
        else:
            self._met, self._met_workers = places, workers

    async def take(self, staying: Sequence[str], leaving: Sequence[str], *, gang_size: int) -> dict[str, Membership]:
        """The places of the next group, in order of rank: those in which its workers have met, or else new ones.

        Raises:
            WorkerLostError: the first member is lost.
        """
        places, members, self._met = self._met, (*staying, *leaving), {}
        has_met = tuple(places) == members and self._met_workers == self._calls.workers(members)
        if not has_met:
            places = await self._new(members)
        where = "which have met" if has_met else "which meet now"
        logger.info("group %d of the trainers: %s, %s", places[members[0]].generation, ", ".join(members), where)
        return {
            member: replace(place, num_leaving=len(leaving), gang_size=gang_size) for member, place in places.items()
        }

    async def _new(self, members: Sequence[str]) -> dict[str, Membership]:
        self._generation += 1
        generation, secret = self._generation, secrets.token_hex(32)
        host, port = await self._calls.one(members[0], "choose_port", self._on_one_machine)
        return {
            member: Membership(
                rank=rank, num_ranks=len(members), host=host, port=port, generation=generation, secret=secret
            )
            for rank, member in enumerate(members)
        }
