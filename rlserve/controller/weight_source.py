"""The contract of what gives replicas the versions of the weights that the trainers make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rlserve.controller.group_copies import GroupCopies, MemberCopy
from rlserve.weights.offer import Receipt


class WeightSource(ABC):
    """Publishes versions, and brings every replica to the newest."""

    snapshot_s = 0.0
    """What training waited for when the newest version was copied, without the wait for the end of a step or of a
    change of the group."""

    @property
    @abstractmethod
    def version(self) -> int:
        """The newest published version; -1 before the first."""

    @property
    @abstractmethod
    def busy_s(self) -> float:
        """Seconds in which a version was under way, since the run began."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """What the newest versions took; names are documented in ``rlserve.tracking.names``."""

    @abstractmethod
    def copies(self, version: int) -> GroupCopies:
        """What trainers copy with the step that makes a version."""

    @abstractmethod
    async def publish(self, version: int, copies: Sequence[MemberCopy] = ()) -> None:
        """Make the trainers' weights, between two steps, a version that replicas can take. ``copies`` is what trainers
        copied with the step that made it; where there was no step, they copy now.

        Raises:
            WorkerFailedError: no member of the trainers' group is left.
        """

    @abstractmethod
    async def settled(self) -> None:
        """Wait until nothing is under way. Every single step of it has a deadline, which names its culprit."""

    @abstractmethod
    async def take(self, slot_id: str) -> Receipt:
        """Let a worker that is about to serve take the newest version; ``add`` it once it serves.

        Raises:
            WeightsRefusedError: its engine does not hold what was published.
            WorkerFailedError: it died, failed, or did not take the version in time.
        """

    @abstractmethod
    async def add(self, slot_id: str, receipt: Receipt) -> None:
        """Bring a replica to every version from now on; returns when it has the newest one, or was reported."""

    @abstractmethod
    def remove(self, slot_id: str) -> None:
        """A replica leaves or is lost: it gets nothing more, and what becomes of a version under way is no matter."""

    @abstractmethod
    async def close(self) -> None:
        """The run is over: break off what is under way, and remove what was sent."""
