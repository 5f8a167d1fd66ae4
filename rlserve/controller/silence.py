"""When a worker is taken for dead: from what was seen of it, round by round. Pure; rounds are counted, not seconds.

A worker that answers nothing for the timeout, and is not seen to use the processor or to be ready to, stands still: it
hangs. Where it is seen to be stopped by a signal, nothing but another signal brings it back, and a fifth of the timeout
will do. Any other is starved, or holds Python's lock, and is given ``PATIENCE`` times as long. A worker that
answers, says that it computes and waits for nobody, and has not used the processor for as long, is wedged: what it
computes does not get on. Where its processor time cannot be seen, nobody can tell that from a long computation, and
only the deadlines of its calls find it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PATIENCE = 6
_STOPPED_SHARE = 0.2
"""Of the timeout, for one that is stopped. The trainers stand still meanwhile, and whoever wants to join them waits."""
_LEAST_STOPPED = 2
"""Rounds: one may have begun before it was."""
_STILL_SHARE = 0.02
"""Of a round: what the answers themselves, and Ray's threads, take of the processor."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of a worker in one round."""

    was_heard: bool
    """It has answered."""
    is_computing: bool = False
    """It said that it computes, and waits for nobody."""
    processor_s: float | None = None
    """Processor time that its process has used so far, where that can be seen."""
    is_ready_to_run: bool = False
    """One of its threads would run if it had a processor, where that can be seen."""
    is_stopped: bool = False
    """Its process is, by a signal, where that can be seen."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """What the rounds up to now have come to."""

    num_missed: int = 0
    """Rounds that passed without an answer."""
    num_still: int = 0
    """The last rounds, one after the other, in which it stood still."""
    num_stopped: int = 0
    """Of these the last, at whose ends it was stopped."""
    processor_s: float | None = None
    """As of the last look."""

    def after(self, look: Look, *, interval_s: float) -> Silence:
        """One round later."""
        used_s = None if None in (look.processor_s, self.processor_s) else look.processor_s - self.processor_s  # type: ignore[operator]
        if look.was_heard:
            is_still = (
                look.is_computing
                and used_s is not None
                and used_s <= _STILL_SHARE * interval_s
                and not look.is_ready_to_run
            )
        else:
            is_still = look.processor_s is None or (used_s is not None and used_s <= 0 and not look.is_ready_to_run)
        return Silence(
            num_missed=0 if look.was_heard else self.num_missed + 1,
            num_still=self.num_still + 1 if is_still else 0,
            num_stopped=self.num_stopped + 1 if is_still and look.is_stopped else 0,
            processor_s=look.processor_s,
        )

    def is_over(self, max_rounds: int) -> bool:
        """Whether it is taken for dead."""
        return (
            self.num_still >= max_rounds
            or self.num_missed >= PATIENCE * max_rounds
            or self.num_stopped >= most_stopped(max_rounds)
        )

    def is_suspect(self, max_rounds: int) -> bool:
        """Whether it is half-way there."""
        return 2 * max(self.num_still, self.num_missed) >= max_rounds or self.num_stopped > 0


def most_stopped(max_rounds: int) -> int:
    """After how many rounds one that is stopped is taken for dead, of the ``max_rounds`` of the timeout."""
    return min(max_rounds, max(_LEAST_STOPPED, math.ceil(_STOPPED_SHARE * max_rounds)))
