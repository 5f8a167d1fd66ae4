"""The contract of what gives the training loop its batches: what was rolled out, or a data set."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlserve.trainers.batch import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """What a step trains on."""

    num_groups: int
    """Prompt groups, or rows of a data set."""
    build: Callable[[], Batch]
    """May take a while, and may be called in another thread."""
    metrics: Mapping[str, float]
    """What it tells by itself."""


class BatchSource(ABC):
    """Gives one batch at a time; called by one task."""

    waiting = False
    """Whether the trainers wait for a batch."""

    @abstractmethod
    async def next(self, stop: asyncio.Event) -> Taken | None:
        """What the next step trains on, as soon as there is enough; None where ``stop`` comes first."""

    @abstractmethod
    def note_trained(self, batch: Batch, step: int, metrics: Mapping[str, float]) -> None:
        """What was taken last has been trained on, with these metrics."""
