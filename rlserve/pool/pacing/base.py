"""The contract of a slot's pace: how long each thing that its worker does takes at least. Times are seconds of the
pace's own clock, which are those of the modelled accelerator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from rlserve.roofline.accelerators import SlotType
from rlserve.roofline.costs import Costs

if TYPE_CHECKING:  # torch comes with it, which the controller does without
    from rlserve.engine.loop.step_pace import StepPace


class Activity(StrEnum):
    """What a worker's time goes into."""

    ENGINE_STEP = "engine_step"
    TRAIN_STEP = "train_step"
    COPY = "copy"
    """Of the policy, for the sender."""
    RECEIVE = "receive"
    """A version of the weights."""
    RESHARD = "reshard"
    """The trainers form a group, and state moves."""
    SLEEP = "sleep"
    """Freeing the memory of a role."""
    WAKE = "wake"
    """Taking an engine's memory."""


@dataclass(frozen=True, kw_only=True)
class ActivityTimes:
    """How the times of one activity came out."""

    number: int = 0
    modelled_s: float = 0.0
    """What the model gives."""
    computed_s: float = 0.0
    """What this machine took for the real work."""
    late_s: float = 0.0
    """How much later than the model says it ended, as far as that was not caught up with."""

    def __add__(self, other: ActivityTimes) -> ActivityTimes:
        return ActivityTimes(
            number=self.number + other.number,
            modelled_s=self.modelled_s + other.modelled_s,
            computed_s=self.computed_s + other.computed_s,
            late_s=self.late_s + other.late_s,
        )


PacingAccount = Mapping[Activity, ActivityTimes]
"""Of one worker, since it was started."""


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """The accelerator that a worker stands for."""

    slot_type: SlotType
    costs: Costs
    dilation: float
    """Real seconds that a modelled one takes."""


class Pace(ABC):
    """The pace of one worker, in both roles. May be used by several threads."""

    @abstractmethod
    def now_s(self) -> float:
        """The pace's clock."""

    @abstractmethod
    def engine_steps(self) -> StepPace | None:
        """For the loop of an engine; None where steps take what they take."""

    @abstractmethod
    def account(self) -> PacingAccount | None:
        """How the times have come out; None where nothing is paced."""

    # Each is a context that lasts as long as the model says, or as what is done in it where that takes longer. What
    # raises ends at once.

    @abstractmethod
    def waking(self) -> AbstractContextManager[None]:
        """Taking the memory of an engine."""

    @abstractmethod
    def freeing(self) -> AbstractContextManager[None]:
        """Freeing the memory of a role."""

    @abstractmethod
    def receiving(self) -> AbstractContextManager[None]:
        """Taking a version of the weights, beside the running one."""

    @abstractmethod
    def copying(self) -> AbstractContextManager[None]:
        """Copying the policy of a trainer."""

    @abstractmethod
    def stepping(self, *, num_ranks: int, num_tokens: int) -> AbstractContextManager[None]:
        """A training step of this rank and ``num_ranks - 1`` others, on ``num_tokens`` together."""

    @abstractmethod
    def resharding(self, *, num_ranks: int, num_before: int) -> AbstractContextManager[None]:
        """Forming a group of ``num_ranks`` trainers, of which there were ``num_before``."""
