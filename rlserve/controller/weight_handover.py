"""Weights that stay where they are: each engine takes those of the trainer in its own process.

::

    step v ─► fingerprint of rank 0's weights ─► the trainers sleep ─► each worker: trainer ──copy──► engine
                        └───────────────────────── must be equal ◄──────── fingerprint of what is loaded

All ranks hold the same weights to the bit (``trainers/elastic``), so one of them says what every engine must have, and
what it must make of the canary (``rlserve.controller.canary``).
Nothing is sent, packed or kept twice. A replica serves one version as long as it serves.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.controller.busy_time import BusyTime
from rlserve.controller.canary import CanaryWatch, Taken
from rlserve.controller.context import RunContext
from rlserve.controller.group_copies import GroupCopies, MemberCopy
from rlserve.controller.ports import Fleet, WorkerHandle
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_source import WeightSource
from rlserve.errors import WeightsRefusedError
from rlserve.remote import answer
from rlserve.tracking.events import WeightEvent
from rlserve.weights.offer import Receipt, TrainedWeights


class WeightHandover(WeightSource):
    """Of the placement ``colocated``."""

    def __init__(
        self, run: RunContext, fleet: Fleet, trainers: TrainerGroup, canary: CanaryWatch, *, timeout_s: float
    ) -> None:
        """``timeout_s`` is the deadline of one worker taking one version."""
        self._clock = run.clock
        self._events = run.events
        self._fleet = fleet
        self._trainers = trainers
        self._canary = canary
        self._timeout_s = timeout_s
        self._version = -1
        self._trained = TrainedWeights(fingerprint=0)
        self._published_s = 0.0
        self._load_s: dict[str, float] = {}
        self._swap_s = 0.0
        self._busy = BusyTime(run.clock)

    @property
    def version(self) -> int:
        return self._version

    @property
    def busy_s(self) -> float:
        return self._busy.total_s

    def metrics(self) -> dict[str, float]:
        return {
            "weights/version": self._version,
            "weights/snapshot_s": self.snapshot_s,
            "weights/publish_s": 0.0,
            "weights/swap_s": self._swap_s,
            "weights/load_s": max(self._load_s.values(), default=0.0),
            **self._canary.metrics(),
        }

    def copies(self, version: int) -> GroupCopies:
        return GroupCopies()

    async def publish(self, version: int, copies: Sequence[MemberCopy] = ()) -> None:
        self._trained = await self._trainers.by_leader(lambda leader: self._ask(leader, version))
        self._version, self._published_s = version, self._clock.now()
        self._record(None, self.snapshot_s, pause_s=self.snapshot_s)

    async def settled(self) -> None:
        pass

    async def take(self, slot_id: str) -> Receipt:
        worker = self._fleet[slot_id]
        with self._busy:
            return await self._canary.accepted(slot_id, worker, lambda _: self._loaded(slot_id, worker))

    async def add(self, slot_id: str, receipt: Receipt) -> None:
        self._load_s[slot_id] = receipt.load_s
        self._swap_s = self._clock.now() - self._published_s

    def remove(self, slot_id: str) -> None:
        pass

    async def close(self) -> None:
        pass

    async def _loaded(self, slot_id: str, worker: WorkerHandle) -> Taken:
        """Let a worker take the weights of its own trainer, and compare fingerprints."""
        version, trained, start = self._version, self._trained, self._clock.now()
        what = f"the replica on {slot_id}, taking version {version} of the weights"
        call = worker.take_own_weights.remote(version)
        receipt: Receipt = await answer(call, timeout_s=self._timeout_s, what=what)
        if (receipt.version, receipt.fingerprint) != (version, trained.fingerprint):
            raise WeightsRefusedError(
                f"the replica on {slot_id} reports version {receipt.version} with fingerprint "
                f"{receipt.fingerprint:016x}, trained was version {version} with {trained.fingerprint:016x}"
            )
        self._record(slot_id, self._clock.now() - start, pause_s=receipt.load_s)
        return Taken(receipt=receipt, expected=trained.canary)

    async def _ask(self, slot_id: str, version: int) -> TrainedWeights:
        start, what = self._clock.now(), f"the trainer on {slot_id}, describing version {version} of the weights"
        call = self._fleet[slot_id].describe_weights.remote(version)
        trained: TrainedWeights = await answer(call, timeout_s=self._timeout_s, what=what)
        self.snapshot_s = self._clock.now() - start
        return trained

    def _record(self, slot_id: str | None, duration_s: float, *, pause_s: float) -> None:
        self._events.emit(
            WeightEvent(
                time_s=self._clock.now(),
                version=self._version,
                slot_id=slot_id,
                duration_s=duration_s,
                pause_s=pause_s,
            )
        )
