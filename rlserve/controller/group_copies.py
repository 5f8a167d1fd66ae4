"""What the trainers copy between two steps: their weights for the replicas, their state for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlserve.controller.ports import WorkerHandle
from rlserve.pool.base import Copied, Copies


@dataclass(frozen=True, kw_only=True)
class GroupCopies:
    """What is asked of a group."""

    version: int | None = None
    """Of the weights; None where they are not copied."""
    are_spread: bool = False
    """Each member has a part of the weights, and copies that; else rank 0 has all."""
    state: bool = False
    """Each member copies its part of the state."""

    def of_each(self, members: Sequence[str]) -> dict[str, Copies]:
        """By member, in order of rank."""
        return {
            member: Copies(version=self.version if self.are_spread or rank == 0 else None, state=self.state)
            for rank, member in enumerate(members)
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberCopy:
    """What one member has copied. It lies with its worker, also after that has left the group."""

    slot_id: str
    worker: WorkerHandle
    copies: Copies
    copied: Copied


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupStep:
    """What came of a step of a group."""

    metrics: Mapping[str, float]
    copies: tuple[MemberCopy, ...]
    """Of those that were asked to copy anything, in order of rank."""
    duration_s: float
    """With the copies, without the wait for the end of a change of the group."""
    broken_s: float = 0.0
    """Of it, tries that were broken off because a member was lost, and what followed until the next."""

    @property
    def copy_s(self) -> float:
        """What of it the copies took."""
        return max((copy.copied.weights_s + copy.copied.state_s for copy in self.copies), default=0.0)

    @property
    def state_copy_s(self) -> float:
        """What of that the state took."""
        return max((copy.copied.state_s for copy in self.copies), default=0.0)

    @property
    def work_s(self) -> float:
        """What the step alone took."""
        return self.duration_s - self.copy_s


def copies_made(
    asked: Mapping[str, Copies], workers: Sequence[WorkerHandle | None], copied: Mapping[str, Copied]
) -> tuple[MemberCopy, ...]:
    """What the members have copied that were asked to copy anything. ``workers`` are those that were asked, in the same
    order."""
    made = []
    for (slot_id, copies), worker in zip(asked.items(), workers, strict=True):
        assert worker is not None, "whoever has answered was there"
        if copies != Copies():
            made.append(MemberCopy(slot_id=slot_id, worker=worker, copies=copies, copied=copied[slot_id]))
    return tuple(made)
