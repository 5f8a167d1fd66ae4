"""How a number changes over a run. Pure functions of the progress of the run, from 0 at its start to 1 at its end."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from rlserve.errors import UserError


class Course(ABC):
    """A number over the run."""

    @abstractmethod
    def at(self, progress: float) -> float:
        """Its value at a point of the run."""


@dataclass(frozen=True)
class Steady(Course):
    """The same all the time."""

    value: float

    def at(self, progress: float) -> float:
        """``value``."""
        return self.value


@dataclass(frozen=True)
class Drift(Course):
    """Goes from one value to another in a straight line."""

    first: float
    last: float

    def at(self, progress: float) -> float:
        """Between the two."""
        return self.first + (self.last - self.first) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class SquareWave(Course):
    """Goes back and forth between two values, in phases of equal length."""

    first: float
    other: float
    num_phases: int

    def at(self, progress: float) -> float:
        """One of the two."""
        phase = min(int(progress * self.num_phases), self.num_phases - 1)
        return self.first if phase % 2 == 0 else self.other


_NUMBER = r"(\d+(?:\.\d+)?)"


def parse_course(text: str) -> Course:
    """``0.7`` is steady, ``1..0.4`` drifts, ``1/0.4x6`` is a square wave of six phases.

    Raises:
        UserError: it is none of these.
    """
    if found := re.fullmatch(_NUMBER, text):
        return Steady(float(found[1]))
    if found := re.fullmatch(rf"{_NUMBER}\.\.{_NUMBER}", text):
        return Drift(float(found[1]), float(found[2]))
    if (found := re.fullmatch(rf"{_NUMBER}/{_NUMBER}x(\d+)", text)) and int(found[3]) >= 1:
        return SquareWave(float(found[1]), float(found[2]), int(found[3]))
    raise UserError(f"{text!r} is no schedule: write 0.7, 1..0.4 for a drift, or 1/0.4x6 for a square wave of 6 phases")
