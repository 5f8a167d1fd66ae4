"""Where the lengths of answers come from: a distribution, or a trace. Tokens are those of the modelled model.

    length of a sample   median * exp(sigma * (g + s) / sqrt(2)),  g ~ N(0, 1) of its group, s ~ N(0, 1) of its own

Groups whose lengths go together are what is seen of reasoning models: hard prompts have long answers, all of them.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from rlserve.rollout.workload.courses import Course
from rlserve.rollout.workload.trace import Trace

_GROUP_SHARE = 0.5
"""Of the variance of logarithmic lengths."""


class Lengths(ABC):
    """Lengths of answers. Those of the group at a position are the same whatever was asked before."""

    @abstractmethod
    def of(self, position: int, num_samples: int, *, seed: int, progress: float) -> Sequence[float]:
        """Of the samples of the group at ``position`` of the data, admitted at this point of the run."""

    @abstractmethod
    def mean(self, progress: float, *, cap: float) -> float:
        """Of a sample that is cut at ``cap`` tokens."""

    @abstractmethod
    def median(self) -> float:
        """At the start of the run."""


@dataclass(frozen=True, kw_only=True)
class LogNormalLengths(Lengths):
    """Log-normal, correlated within a group."""

    median_tokens: Course
    sigma: float
    """Of the logarithm: 1 makes the 99th percentile ten times the median."""

    def of(self, position: int, num_samples: int, *, seed: int, progress: float) -> Sequence[float]:
        """By the formula above."""
        rng, median_tokens = random.Random(f"{seed} {position} length"), self.median_tokens.at(progress)
        common = math.sqrt(_GROUP_SHARE) * rng.gauss(0.0, 1.0)
        own = math.sqrt(1 - _GROUP_SHARE)
        return [median_tokens * math.exp(self.sigma * (common + own * rng.gauss(0.0, 1.0))) for _ in range(num_samples)]

    def mean(self, progress: float, *, cap: float) -> float:
        """E[min(X, c)] in closed form."""
        median_tokens, sigma = self.median_tokens.at(progress), self.sigma
        if sigma == 0:
            return min(median_tokens, cap)
        z = math.log(cap / median_tokens) / sigma
        below = median_tokens * math.exp(sigma**2 / 2) * _normal_cdf(z - sigma)
        return below + cap * (1 - _normal_cdf(z))

    def median(self) -> float:
        """Of the distribution."""
        return self.median_tokens.at(0.0)


@dataclass(frozen=True, kw_only=True)
class TraceLengths(Lengths):
    """In the order of a trace, and from its start again; with a seed other than 0 in an order of its own."""

    trace: Trace

    def of(self, position: int, num_samples: int, *, seed: int, progress: float) -> Sequence[float]:
        """The next of the trace."""
        return self.trace.group(position, num_samples, seed=seed)

    def mean(self, progress: float, *, cap: float) -> float:
        """Of the trace."""
        return fmean(min(length, cap) for length in self.trace.lengths)

    def median(self) -> float:
        """Of the trace."""
        return median(self.trace.lengths)


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
