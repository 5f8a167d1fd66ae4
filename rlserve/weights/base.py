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
    """Time the engine stood still: for the swap, and for the fingerprint that proves it."""


class Transport(ABC):
    """Publishes versions from the trainer and delivers them to replicas. Lives in the controller's process.

    Timing: ``publish`` is called at a step boundary of the trainer, when its weights do not change; ``deliver``
    may be called at any time, also for a replica that joins late, and always delivers the newest version.
    """

    @abstractmethod
    async def publish(self, trainer: Any, version: int) -> None:
        """Take version ``version`` from the trainer's rank 0 (a worker's handle): a new one, or the newest again where
        what was published of it is gone.

        Raises:
            WeightsRefusedError: an older version, or the newest again with other weights.
            WorkerLostError: the trainer died, or did not pack the version in time; nothing was published.
        """

    @abstractmethod
    async def deliver(self, replica: Any, name: str) -> Receipt:
        """Bring a replica (a worker's handle, and what to call it in messages) to the newest published version.

        Raises:
            ArgumentLostError: what was published is gone with the node that held it. The replica is well, and can have
                the version as soon as it is published again.
            WeightsRefusedError: the replica's engine does not hold what was published.
            WorkerLostError: the replica died, or did not take the version in time.
        """

    @property
    @abstractmethod
    def version(self) -> int:
        """The newest published version; -1 before the first."""

    @property
    @abstractmethod
    def num_publications(self) -> int:
        """Counts calls of ``publish`` that succeeded: tells a version from the same one published again."""
