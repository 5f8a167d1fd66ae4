"""Copies of the weights that lie with trainers: taken at step boundaries, sent beside the training, or dropped.

Where every trainer has all weights, rank 0 copies and sends them. Where the policy is spread over them, each copies and
sends the tensors that it has, and a version is an offer of as many parts.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rlserve.controller.context import RunContext
from rlserve.controller.ports import Fleet, WorkerHandle
from rlserve.controller.trainer_calls import answers_of, failures_of, lost_of
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.remote import answer
from rlserve.weights.canary import CanaryScores
from rlserve.weights.chain import Link
from rlserve.weights.offer import Offer, SentPart

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Copy:
    """What one trainer has copied."""

    slot_id: str
    worker: WorkerHandle
    duration_s: float
    canary: CanaryScores


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSnapshot:
    """A copy of the weights that lies with a trainer, or a part of it with each."""

    version: int
    num_group_steps: int
    """Of the group when it was taken: its members hold the same state as long as this has not changed."""
    copies: tuple[_Copy, ...]
    """In order of rank."""
    taken_s: float

    @property
    def duration_s(self) -> float:
        """What the slowest took."""
        return max(copy.duration_s for copy in self.copies)

    @property
    def canary(self) -> CanaryScores:
        """The trainer's, with these weights; nothing where the version has no canary."""
        return self.copies[0].canary


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
        return self._snapshot(version, await self._by_holders(lambda slot_id: self._copy(slot_id, version)))

    async def take_again(self, lost: WeightSnapshot) -> WeightSnapshot | None:
        """From whoever has the weights now; None where the group has stepped on, so that nobody has this version."""

        async def action(slot_id: str) -> _Copy | None:
            if self._trainers.num_steps != lost.num_group_steps:
                return None
            return await self._copy(slot_id, lost.version)

        copies = [copy for copy in await self._by_holders(action) if copy is not None]
        return replace(self._snapshot(lost.version, copies), taken_s=lost.taken_s) if copies else None

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

    async def _by_holders(self, action: Callable[[str], Awaitable[T]]) -> list[T]:
        """Let those who have the weights do something between two steps."""
        if self._are_spread:
            return list((await self._trainers.by_all(action)).values())
        return [await self._trainers.by_leader(action)]

    async def _copy(self, slot_id: str, version: int) -> _Copy:
        worker, start = self._fleet[slot_id], self._clock.now()
        call = worker.snapshot_weights.remote(version)
        canary = await self._answer(slot_id, call, f"copying version {version} of the weights")
        return _Copy(slot_id=slot_id, worker=worker, duration_s=self._clock.now() - start, canary=canary)

    def _snapshot(self, version: int, copies: Sequence[_Copy]) -> WeightSnapshot:
        return WeightSnapshot(
            version=version,
            num_group_steps=self._trainers.num_steps,
            copies=tuple(copies),
            taken_s=self._clock.now(),
        )

    async def _answer(self, slot_id: str, call: Awaitable[Any], what: str) -> Any:
        return await answer(call, timeout_s=self._timeout_s, what=f"the trainer on {slot_id}, {what}")
