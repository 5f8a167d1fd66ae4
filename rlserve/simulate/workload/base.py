"""The contract of a workload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupWork:
    """One prompt group."""

    num_prompt_tokens: int
    lengths: tuple[int, ...]
    """Response tokens of its samples."""
    kept_up_to: float
    """It is kept if the workload's ``kept_share`` when it is scored is above this. In [0, 1]."""


class Workload(ABC):
    """Where prompt groups come from. The group at a position is the same whoever asks, and whatever was asked before:
    all policies are given the same work."""

    @abstractmethod
    def group(self, position: int, share: float) -> GroupWork:
        """The group at ``position`` of the data, admitted when ``share`` of the run has passed."""

    @abstractmethod
    def kept_share(self, share: float) -> float:
        """A group that is scored when ``share`` of the run has passed is kept if its ``kept_up_to`` is below this."""

    def mean_kept_share(self, share: float) -> float:
        """Of groups that are scored then, those that may be trained on, in the mean."""
        return self.kept_share(share)

    @abstractmethod
    def mean_length(self, share: float) -> float:
        """Response tokens of a sample, in the mean, of groups admitted when ``share`` of the run has passed."""

    @abstractmethod
    def seeded(self, seed: int) -> Workload:
        """The same with other random numbers."""
