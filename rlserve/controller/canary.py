"""Whether a replica computes what the trainer does: asked whenever it has taken a version that has a canary.

::

    takes a version ─► scores the canary ─► as the trainer: serves
                                         └► differs: takes it anew, whole ─► scores again ─► as the trainer: serves
                                                                                          └► differs: lost, replaced

A version that a replica took counts for the router once its canary was compared. What the replica goes on to generate
meanwhile has the log-probabilities that it was drawn with, wrong or not, so training on it stays correct.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rlserve.controller.context import RunContext
from rlserve.controller.ports import WorkerHandle
from rlserve.errors import WorkerLostError
from rlserve.remote import answer
from rlserve.tracking.events import CanaryEvent
from rlserve.weights.canary import CanaryScores, difference
from rlserve.weights.offer import Receipt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A version that a replica has taken."""

    receipt: Receipt
    expected: CanaryScores
    """The trainer's; nothing where the version has no canary."""


class CanaryWatch:
    """Lets replicas score the canary, and compares."""

    def __init__(self, run: RunContext, *, tolerance: float, timeout_s: float) -> None:
        """``tolerance`` is the largest difference of a sound replica, ``timeout_s`` the deadline of scoring."""
        self._clock = run.clock
        self._events = run.events
        self._tolerance = tolerance
        self._timeout_s = timeout_s
        self._version = -1
        """The newest that was compared."""
        self._largest = 0.0
        """Of all replicas that have taken it."""
        self._num_refreshes = 0

    def metrics(self) -> dict[str, float]:
        """Names are documented in ``rlserve.tracking.names``."""
        if self._version < 0:
            return {}
        return {"weights/canary_difference_max": self._largest, "weights/num_canary_refreshes": self._num_refreshes}

    async def accepted(self, slot_id: str, worker: WorkerHandle, take: Callable[[bool], Awaitable[Taken]]) -> Receipt:
        """Let a replica ``take`` a version, anew where it differs afterwards; the argument says whether it is anew.

        Raises:
            WorkerLostError: it differs then too.
            RlserveError: what ``take`` raises, or it was lost.
        """
        taken = await take(False)
        found = await self._difference(slot_id, worker, taken)
        if found <= self._tolerance:
            return taken.receipt
        self._num_refreshes += 1
        self._note(slot_id, taken, found, is_replaced=False)
        taken = await take(True)
        found = await self._difference(slot_id, worker, taken)
        if found <= self._tolerance:
            return taken.receipt
        self._note(slot_id, taken, found, is_replaced=True)
        raise WorkerLostError(
            f"{self._finding(slot_id, taken, found)}, also after it took the weights anew: it computes wrongly"
        )

    async def _difference(self, slot_id: str, worker: WorkerHandle, taken: Taken) -> float:
        """From the trainer's log-probabilities; 0 where the version has no canary."""
        if not taken.expected:
            return 0.0
        version = taken.receipt.version
        what = f"the replica on {slot_id}, scoring the canary of version {version} of the weights"
        found: CanaryScores = await answer(worker.score_canary.remote(version), timeout_s=self._timeout_s, what=what)
        largest = difference(taken.expected, found)
        if version >= self._version:
            self._largest = max(largest, self._largest) if version == self._version else largest
            self._version = version
        return largest

    def _note(self, slot_id: str, taken: Taken, found: float, *, is_replaced: bool) -> None:
        remedy = "it is replaced" if is_replaced else "it takes the weights anew"
        logger.warning("%s; %s", self._finding(slot_id, taken, found), remedy)
        self._events.emit(
            CanaryEvent(
                time_s=self._clock.now(),
                slot_id=slot_id,
                version=taken.receipt.version,
                difference=found,
                tolerance=self._tolerance,
                is_replaced=is_replaced,
            )
        )

    def _finding(self, slot_id: str, taken: Taken, found: float) -> str:
        return (
            f"the replica on {slot_id} differs from the trainer by {found:.3g} nats a token in the canary of version "
            f"{taken.receipt.version} of the weights (weights.canary.tolerance: {self._tolerance:g})"
        )
