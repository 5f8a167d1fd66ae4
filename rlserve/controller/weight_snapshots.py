"""Copies of the weights that lie with trainers: taken at step boundaries, sent beside the training, or dropped.

Where every trainer has all weights, rank 0 copies and sends them. Where the policy is spread over them, each copies and
sends the tensors that it has, and a version is an offer of as many parts.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlserve.controller.context import RunContext
from rlserve.controller.group_copies import GroupCopies, MemberCopy
from rlserve.controller.ports import Fleet
from rlserve.controller.trainer_calls import answers_of, failures_of, lost_of
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.remote import answer
from rlserve.weights.canary import CanaryScores
from rlserve.weights.chain import Link
from rlserve.weights.offer import Offer, SentPart

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSnapshot:
    """A copy of the weights that lies with a trainer, or a part of it with each."""

    version: int
    num_group_steps: int
    """Of the group when it was taken: its members hold the same state as long as this has not changed."""
    copies: tuple[MemberCopy, ...]
    """In order of rank."""
    taken_s: float

    @property
    def duration_s(self) -> float:
        """What the slowest took."""
        return max(copy.copied.weights_s for copy in self.copies)

    @property
    def canary(self) -> CanaryScores:
        """The trainer's, with these weights; nothing where the version has no canary."""
        return self.copies[0].copied.canary


class WeightSnapshots:
    """What trainers are asked for. Every call has a deadline, which names the trainer."""

    def __init__(
        self, run: RunContext, fleet: Fleet, trainers: TrainerGroup, *, timeout_s: float, are_spread: bool
    ) -> None:
        """``timeout_s`` is the deadline of one trainer copying or sending one version. ``are_spread``: each trainer
        has a part of the policy (``Trainer.weights``)."""
        self._clock = run.clock
        self._fleet = fleet
        self._trainers = trainers
        self._timeout_s = timeout_s
        self._are_spread = are_spread

    async def take(self, version: int) -> WeightSnapshot:
        """Let whoever has the weights copy them, between two steps.

        Raises:
            WorkerFailedError: no member of the trainers' group is left, or some of the weights are lost.
        """
        return self.of(version, await self._trainers.copy(self.copies(version)))

    def copies(self, version: int) -> GroupCopies:
        """What whoever has the weights is asked for."""
        return GroupCopies(version=version, are_spread=self._are_spread)

    def of(self, version: int, copies: Sequence[MemberCopy]) -> WeightSnapshot:
        """What trainers have copied since their last step."""
        return WeightSnapshot(
            version=version,
            num_group_steps=self._trainers.num_steps,
            copies=tuple(copy for copy in copies if copy.copies.version == version),
            taken_s=self._clock.now(),
        )

    async def take_again(self, lost: WeightSnapshot) -> WeightSnapshot | None:
        """From whoever has the weights now; None where the group has stepped on, so that nobody has this version."""
        copies = await self._trainers.copy(self.copies(lost.version), at_step=lost.num_group_steps)
        return replace(self.of(lost.version, copies), taken_s=lost.taken_s) if copies else None

    async def send(self, snapshot: WeightSnapshot, base: Offer | None, needed: Sequence[int]) -> Link | None:
        """Let its trainers send it, each as what changed since its part of ``base`` if it has that
        (:meth:`Sender.send`); None where one of them is lost, and expelled."""
        calls = {
            copy.slot_id: copy.worker.send_weights.remote(
                snapshot.version, None if base is None else base.holding_from(copy.slot_id), needed
            )
            for copy in snapshot.copies
        }
        what = f"sending version {snapshot.version} of the weights"
        answers = await answers_of({slot_id: self._answer(slot_id, sent, what) for slot_id, (_, sent) in calls.items()})
        failures = failures_of(answers)
        lost = lost_of(failures)
        if failures and not lost:
            raise next(iter(failures.values()))
        for copy in snapshot.copies:
            if (error := lost.get(copy.slot_id)) is not None:
                logger.warning("%s", error)
                await self._trainers.expel(copy.slot_id, copy.worker, error)
        if lost:
            return None
        parts: tuple[SentPart, ...] = tuple(answers.values())
        are_whole = all(part.base is None for part in parts)
        offer = Offer(version=snapshot.version, parts=parts, base=None if base is None or are_whole else base.holding)
        return Link(offer=offer, cargo=tuple(cargo for cargo, _ in calls.values()))

    async def drop(self, snapshot: WeightSnapshot) -> None:
        """It is not going to be sent."""
        calls = {copy.slot_id: copy.worker.drop_snapshot.remote(snapshot.version) for copy in snapshot.copies}
        what = f"dropping version {snapshot.version} of the weights"
        answers = await answers_of({slot_id: self._answer(slot_id, call, what) for slot_id, call in calls.items()})
        for error in failures_of(answers).values():
            if not isinstance(error, WorkerLostError):
                raise error
            logger.warning("%s", error)  # the snapshot is gone with it

    async def discard_sent(self) -> None:
        """Let a trainer remove what was sent: the run is over."""
        member = self._trainers.members[0]
        try:
            call: Any = self._fleet[member].discard_weights.remote()
            await answer(call, timeout_s=self._timeout_s, what=f"{member} removing the weights that were sent")
        except WorkerFailedError as error:  # all else was done
            logger.warning("%s", error)

    async def _answer(self, slot_id: str, call: Awaitable[Any], what: str) -> Any:
        return await answer(call, timeout_s=self._timeout_s, what=f"the trainer on {slot_id}, {what}")
