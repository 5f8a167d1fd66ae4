"""Copies of the weights that lie with trainers: taken at step boundaries, sent beside the training, or dropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlserve.controller.context import RunContext
from rlserve.controller.ports import Fleet, WorkerHandle
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.remote import answer
from rlserve.weights.canary import CanaryScores
from rlserve.weights.chain import Link
from rlserve.weights.offer import Holding, Offer, SentPart

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSnapshot:
    """A copy of the weights that lies with a trainer."""

    version: int
    num_group_steps: int
    """Of the group when it was taken: its members hold the same state as long as this has not changed."""
    slot_id: str
    worker: WorkerHandle
    taken_s: float
    duration_s: float
    canary: CanaryScores
    """The trainer's, with these weights; nothing where the version has no canary."""


class WeightSnapshots:
    """What trainers are asked for. Every call has a deadline, which names the trainer."""

    def __init__(self, run: RunContext, fleet: Fleet, trainers: TrainerGroup, *, timeout_s: float) -> None:
        """``timeout_s`` is the deadline of one trainer copying or sending one version."""
        self._clock = run.clock
        self._fleet = fleet
        self._trainers = trainers
        self._timeout_s = timeout_s

    async def take(self, version: int) -> WeightSnapshot:
        """Let rank 0 copy its weights, between two steps.

        Raises:
            WorkerFailedError: no member of the trainers' group is left.
        """
        return await self._trainers.by_leader(lambda leader: self._copy(leader, version))

    async def take_again(self, lost: WeightSnapshot) -> WeightSnapshot | None:
        """From whoever is rank 0 now; None where the group has stepped on, so that nobody holds this version."""

        async def action(leader: str) -> WeightSnapshot | None:
            if self._trainers.num_steps != lost.num_group_steps:
                return None
            again = await self._copy(leader, lost.version)
            return replace(again, taken_s=lost.taken_s)

        return await self._trainers.by_leader(action)

    async def send(self, snapshot: WeightSnapshot, base: Holding | None, needed: Sequence[int]) -> Link | None:
        """Let its trainer send it, as what changed since ``base`` if it has that (:meth:`Sender.send`); None where that
        trainer is lost, and expelled."""
        cargo, sent = snapshot.worker.send_weights.remote(snapshot.version, base, needed)
        what = f"the trainer on {snapshot.slot_id}, sending version {snapshot.version} of the weights"
        try:
            part: SentPart = await answer(sent, timeout_s=self._timeout_s, what=what)
        except WorkerLostError as error:
            logger.warning("%s", error)
            await self._trainers.expel(snapshot.slot_id, snapshot.worker, error)
            return None
        return Link(offer=Offer(version=snapshot.version, parts=(part,)), cargo=(cargo,))

    async def drop(self, snapshot: WeightSnapshot) -> None:
        """It is not going to be sent."""
        what = f"the trainer on {snapshot.slot_id}, dropping version {snapshot.version} of the weights"
        try:
            await answer(snapshot.worker.drop_snapshot.remote(snapshot.version), timeout_s=self._timeout_s, what=what)
        except WorkerLostError as error:  # the snapshot is gone with it
            logger.warning("%s", error)

    async def discard_sent(self) -> None:
        """Let a trainer remove what was sent: the run is over."""
        member = self._trainers.members[0]
        try:
            call: Any = self._fleet[member].discard_weights.remote()
            await answer(call, timeout_s=self._timeout_s, what=f"{member} removing the weights that were sent")
        except WorkerFailedError as error:  # all else was done
            logger.warning("%s", error)

    async def _copy(self, slot_id: str, version: int) -> WeightSnapshot:
        worker = self._fleet[slot_id]
        what = f"the trainer on {slot_id}, copying version {version} of the weights"
        start = self._clock.now()
        canary = await answer(worker.snapshot_weights.remote(version), timeout_s=self._timeout_s, what=what)
        return WeightSnapshot(
            version=version,
            num_group_steps=self._trainers.num_steps,
            slot_id=slot_id,
            worker=worker,
            taken_s=self._clock.now(),
            duration_s=self._clock.now() - start,
            canary=canary,
        )
