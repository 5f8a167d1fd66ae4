"""The contract of a transport: how a published version reaches the replicas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a replica reports after taking a version."""

    version: int
    fingerprint: int
    """Of what its engine has really loaded."""
    load_s: float
    """Time the engine stood still for the swap."""


class Transport(ABC):
    """Publishes versions from the trainer and delivers them to replicas. Lives in the controller's process.

    Timing: ``publish`` is called at a step boundary of the trainer, when its weights do not change; ``deliver``
    may be called at any time, also for a replica that joins late, and always delivers the newest version.
    """

    @abstractmethod
    async def publish(self, trainer: Any, version: int) -> None:
        """Take version ``version`` from the trainer's rank 0 (a worker's handle).

        Raises:
            WorkerLostError: the trainer died, or did not pack the version in time; nothing was published.
        """

    @abstractmethod
    async def deliver(self, replica: Any) -> Receipt:
        """Bring a replica (a worker's handle) to the newest published version.

        Raises:
            WeightsRefusedError: the replica's engine does not hold what was published.
            WorkerLostError: the replica died, or did not take the version in time.
        """

    @property
    @abstractmethod
    def version(self) -> int:
        """The newest published version; -1 before the first."""
