"""The contract of whoever lets steps take longer than they need to be computed, as if by another device."""

from __future__ import annotations

from typing import Protocol

from rlserve.engine.stats.step_work import StepWork


class StepPace(Protocol):
    """Asked by the loop, in the engine's thread, after each step that was computed; all times of the clock are the
    loop's."""

    def computed(self, start_s: float, work: StepWork) -> None:
        """The step that began at ``start_s`` is computed."""

    def left_s(self) -> float:
        """Real seconds until it may end; 0 or less once it may."""

    def ended(self, *, goes_on: bool) -> None:
        """It has ended, or was broken off. ``goes_on``: the next one follows at once."""
