"""Whether a change paid: what a trained token cost in two runs, and whether chance alone would explain the difference.

Steps differ, so the cost of a token does from one stretch of a run to the next. How far the mean over a run may be off
is told by the moving block bootstrap (Künsch 1989) in its circular form (Politis and Romano 1992): runs of the same
length are drawn from blocks of neighbouring steps, since neighbours are alike. Runs have few blocks, so intervals are
made of the spread of the draws by Student's t, of logarithms, since costs are compared by their ratio. The first step
is left out: what comes before it is the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from rlserve.tracking.cost.figures import MILLION, money_of
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.cost.statement import StepCost, hours

MIN_NUM_STEPS = 8
"""After the first; with fewer, an interval would mean nothing."""
LEVEL = 0.95
_NUM_DRAWS = 4000
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value, and where the true one is with the probability :data:`LEVEL`."""

    value: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Whether it may be none at all."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Of two runs, after the first step of each."""

    before: Interval
    """What a million trained tokens cost in the first run."""
    after: Interval
    """The same of the second."""
    change: Interval
    """Relative: -0.1 is 10 % cheaper."""
    saved: float
    """What the second run's tokens would have cost more at the cost of the first; below 0 where less."""

    @property
    def is_distinguishable(self) -> bool:
        """Whether chance alone does not explain the change."""
        return not self.change.contains_zero


@dataclass(frozen=True)
class _Series:
    costs_N: NDArray[np.float64]
    num_tokens_N: NDArray[np.float64]

    @property
    def unit(self) -> float:
        """Cost of a million tokens."""
        return float(self.costs_N.sum() / self.num_tokens_N.sum() * MILLION)

    @property
    def block_length(self) -> int:
        """Steps of a block."""
        return max(1, round(math.cbrt(len(self.costs_N))))

    @property
    def num_blocks(self) -> int:
        """That a run has."""
        return -(-len(self.costs_N) // self.block_length)

    def spread(self, random: np.random.Generator) -> float:
        """Standard error of the logarithm of the unit cost."""
        starts_DB = random.integers(len(self.costs_N), size=(_NUM_DRAWS, self.num_blocks))
        costs_D, num_tokens_D = (
            _circular_sums(values_N, self.block_length)[starts_DB].sum(axis=1)
            for values_N in (self.costs_N, self.num_tokens_N)
        )
        drawn = float(np.log(costs_D / num_tokens_D).std())
        return drawn * math.sqrt(self.num_blocks / (self.num_blocks - 1))


def compare_costs(
    before: Sequence[StepCost], after: Sequence[StepCost], prices: Prices | None = None
) -> Comparison | None:
    """Of two runs, in money at ``prices``, or else in GPU-hours; None where a run has too few steps, or a type of slot
    has no price."""
    first, second = _series(before, prices), _series(after, prices)
    if first is None or second is None:
        return None
    random = np.random.default_rng(_SEED)
    spreads = (first.spread(random), second.spread(random))
    degrees = (first.num_blocks - 1, second.num_blocks - 1)
    ratio = _interval(second.unit / first.unit, math.hypot(*spreads), _joint_degrees(spreads, degrees))
    return Comparison(
        before=_interval(first.unit, spreads[0], degrees[0]),
        after=_interval(second.unit, spreads[1], degrees[1]),
        change=Interval(value=ratio.value - 1, low=ratio.low - 1, high=ratio.high - 1),
        saved=(first.unit - second.unit) * float(second.num_tokens_N.sum()) / MILLION,
    )


def _series(steps: Sequence[StepCost], prices: Prices | None) -> _Series | None:
    costs = [_cost(earlier, later, prices) for earlier, later in pairwise(steps)]
    known = [cost for cost in costs if cost is not None]
    if len(costs) < MIN_NUM_STEPS or len(known) < len(costs):
        return None
    num_tokens = [step.num_trained_tokens for step in steps[1:]]
    return _Series(np.array(known), np.array(num_tokens, dtype=np.float64))


def _cost(earlier: StepCost, later: StepCost, prices: Prices | None) -> float | None:
    spent = {name: hours(total_ns - earlier.owned_ns.get(name, 0)) for name, total_ns in later.owned_ns.items()}
    return sum(spent.values()) if prices is None else money_of(spent, prices)


def _circular_sums(values_N: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Of the block that begins at each place."""
    sums = np.concatenate(([0.0], np.cumsum(np.concatenate((values_N, values_N[: length - 1])))))
    blocks_N: NDArray[np.float64] = sums[length:] - sums[:-length]
    return blocks_N


def _interval(value: float, spread: float, degrees: float) -> Interval:
    """Around a value whose logarithm has this standard error, with so many degrees of freedom."""
    factor = math.exp(float(stdtrit(degrees, (1 + LEVEL) / 2)) * spread)
    return Interval(value=value, low=value / factor, high=value * factor)


def _joint_degrees(spreads: tuple[float, float], degrees: tuple[int, int]) -> float:
    """Of a difference of two (Welch 1947)."""
    total = sum(spread**2 for spread in spreads)
    if not total:
        return sum(degrees)
    return float(total**2 / sum(spread**4 / number for spread, number in zip(spreads, degrees, strict=True)))
