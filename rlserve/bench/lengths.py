"""How many tokens a prompt or an answer has: a distribution, as the command line spells it."""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from rlserve.errors import UserError

_SPELLINGS = "512, 128..1024, normal:512,64 (mean, deviation) or lognormal:512,0.8 (median, deviation of the logarithm)"


class Lengths(ABC):
    """A distribution of numbers of tokens, all at least 1."""

    @abstractmethod
    def draw(self, rng: random.Random) -> int:
        """One length."""


@dataclass(frozen=True)
class FixedLengths(Lengths):
    """Always the same."""

    num_tokens: int

    def draw(self, rng: random.Random) -> int:
        """``num_tokens``."""
        return self.num_tokens


@dataclass(frozen=True)
class UniformLengths(Lengths):
    """Each length from ``low`` to ``high``, both included, equally often."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True)
class NormalLengths(Lengths):
    """Normal, rounded, and at least 1."""

    mean: float
    deviation: float

    def draw(self, rng: random.Random) -> int:
        """Rounded to whole tokens."""
        return max(1, round(rng.gauss(self.mean, self.deviation)))


@dataclass(frozen=True)
class LogNormalLengths(Lengths):
    """``median * exp(deviation * z)`` with z ~ N(0, 1), cut at ``cap`` where there is one."""

    median: float
    deviation: float
    cap: int | None = None

    def draw(self, rng: random.Random) -> int:
        """Rounded to whole tokens."""
        length = max(1, round(self.median * math.exp(rng.gauss(0.0, self.deviation))))
        return length if self.cap is None else min(length, self.cap)


def parse_lengths(text: str) -> Lengths:
    """``512``, ``128..1024``, ``normal:MEAN,DEVIATION``, ``lognormal:MEDIAN,DEVIATION[,CAP]``.

    Raises:
        UserError: it is none of these, or lengths below 1 are all that it allows.
    """
    if re.fullmatch(r"[1-9]\d*", text):
        return FixedLengths(int(text))
    if (found := re.fullmatch(r"([1-9]\d*)\.\.([1-9]\d*)", text)) and int(found[1]) <= int(found[2]):
        return UniformLengths(int(found[1]), int(found[2]))
    number = r"(\d+(?:\.\d+)?)"
    if (found := re.fullmatch(rf"normal:{number},{number}", text)) and float(found[1]) >= 1:
        return NormalLengths(float(found[1]), float(found[2]))
    found = re.fullmatch(rf"lognormal:{number},{number}(?:,([1-9]\d*))?", text)
    if found and float(found[1]) >= 1:
        return LogNormalLengths(float(found[1]), float(found[2]), None if found[3] is None else int(found[3]))
    raise UserError(f"{text!r} is no distribution of lengths: write {_SPELLINGS}")
