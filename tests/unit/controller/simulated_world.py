"""What simulated workers have in common: how long things take, where they meet, and what they found wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlserve.errors import WorkerFailedError
from rlserve.weights.canary import CanaryScores

if TYPE_CHECKING:
    from simulated_workers import SimulatedWorker

_PEER_TIMEOUT_S = 5.0


def always(_: float) -> float:
    """The same load at any time."""
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """How long things take, in virtual seconds."""

    start_s: float = 5.0
    switch_s: float = 0.5
    step_s: float = 4.0
    """A training step on one rank."""
    token_s: float = 0.02
    load: Callable[[float], float] = always
    """Factor on ``token_s`` by the time."""


class Meeting:
    """Where all ranks of a group come together, or none."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.workers: list[SimulatedWorker] = []
        self.complete = asyncio.Event()
        self.broken = asyncio.Event()
        self._waited_for = asyncio.Event()
        """All have come, or nobody waits for them any more."""

    def break_off(self) -> None:
        """Nobody waits for those who have not come."""
        self._waited_for.set()

    async def meet(self, worker: SimulatedWorker, seconds: float) -> None:
        """Return when all have come and ``seconds`` have passed.

        Raises:
            WorkerFailedError: one did not come, or died meanwhile.
        """
        self.workers.append(worker)
        if len(self.workers) == self.size and not self._waited_for.is_set():
            self.complete.set()
            self._waited_for.set()
        try:
            async with asyncio.timeout(_PEER_TIMEOUT_S):
                await self._waited_for.wait()
            if not self.complete.is_set():
                raise TimeoutError
            await asyncio.wait_for(self.broken.wait(), seconds)
        except TimeoutError:
            if self.complete.is_set() and not self.broken.is_set():
                return
        raise WorkerFailedError(f"{worker.slot_id}: a peer is gone")


@dataclass(kw_only=True)
class World:
    """What all workers of a run have in common."""

    speeds: Speeds = field(default_factory=Speeds)
    lengths: tuple[int, int] = (20, 200)
    """Fewest and most tokens of an answer."""
    recompute_s: float | None = None
    """What it takes to compute the samples under way anew when new weights come; None keeps their KV."""
    seed: int = 0
    faults: list[Exception] = field(default_factory=list)
    """What the workers found wrong."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    meetings: dict[tuple[Any, ...], Meeting] = field(default_factory=dict)

    num_kept_tokens: int = 0
    """Tokens that requests brought along from another replica."""
    num_returned_tokens: int = 0
    """Tokens that requests had when their replica left."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def canary_of(self, version: int) -> CanaryScores:
        """What a trainer, and a sound engine, make of it."""
        return ((-float(version), -1.0),)

    def break_off(self, generation: int) -> None:
        """Groups up to this one do not come about."""
        for (_, number, *_), meeting in self.meetings.items():
            if number <= generation:
                meeting.break_off()

    def meeting(self, key: tuple[Any, ...], size: int) -> Meeting:
        """The one that all with the same key come to."""
        if len(self.meetings) > 8:
            del self.meetings[next(iter(self.meetings))]  # long over
        return self.meetings.setdefault(key, Meeting(size))
