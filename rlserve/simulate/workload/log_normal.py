"""Lengths that are log-normal, correlated within a group, and cut at a cap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rlserve.errors import check_fields
from rlserve.simulate.workload.base import GroupWork, Workload
from rlserve.simulate.workload.schedules import Schedule, Steady

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class LogNormalConfig:
    """A distribution of lengths, and how it changes."""

    median: Schedule = field(default_factory=lambda: Steady(2000.0))
    """Response tokens."""
    sigma: float = 1.0
    """Of the logarithm: 1 makes the 99th percentile ten times the median."""
    max_tokens: int = 32_768
    group_share: float = 0.5
    """Of the variance of the logarithm, the part that the prompt decides: samples of one group are alike."""
    num_prompt_tokens: int = 256
    samples_per_prompt: int = 8
    kept: Schedule = field(default_factory=lambda: Steady(1.0))
    """Of scored groups, those that may be trained on."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "sigma": self.sigma >= 0 or "must be at least 0",
                "max_tokens": self.max_tokens >= 1 or "must be at least 1",
                "group_share": 0 <= self.group_share <= 1 or "must be between 0 and 1",
                "num_prompt_tokens": self.num_prompt_tokens >= 1 or "must be at least 1",
                "samples_per_prompt": self.samples_per_prompt >= 1 or "must be at least 1",
            },
        )


@dataclass(frozen=True, kw_only=True)
class LogNormalWorkload(Workload):
    """Draws groups in blocks, each with a generator of its own."""

    config: LogNormalConfig
    seed: int = 0
    _blocks: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def group(self, position: int, share: float) -> GroupWork:
        """``median(share) * exp(sigma * z)``, where z is standard normal with the group's part in common."""
        config = self.config
        block, row = divmod(position, _BLOCK)
        if block not in self._blocks:
            self._blocks[block] = self._draw(block)
        factors, kept_up_to = self._blocks[block]
        median, cap = config.median.at(share), config.max_tokens
        lengths = tuple([min(cap, int(median * factor) + 1) for factor in factors[row].tolist()])
        return GroupWork(num_prompt_tokens=config.num_prompt_tokens, lengths=lengths, kept_up_to=float(kept_up_to[row]))

    def kept_share(self, share: float) -> float:
        """By the schedule."""
        return self.config.kept.at(share)

    def mean_length(self, share: float) -> float:
        """Of the distribution with its cap: E[min(X, c)] in closed form."""
        median, sigma, cap = self.config.median.at(share), self.config.sigma, float(self.config.max_tokens)
        if sigma == 0:
            return min(median, cap)
        z = math.log(cap / median) / sigma
        return median * math.exp(sigma**2 / 2) * _normal_cdf(z - sigma) + cap * (1 - _normal_cdf(z))

    def seeded(self, seed: int) -> LogNormalWorkload:
        """The same distribution."""
        return replace(self, seed=seed, _blocks={})

    def _draw(self, block: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        config, rng = self.config, np.random.default_rng((self.seed, block))
        of_group = rng.standard_normal((_BLOCK, 1))
        of_sample = rng.standard_normal((_BLOCK, config.samples_per_prompt))
        z = math.sqrt(config.group_share) * of_group + math.sqrt(1 - config.group_share) * of_sample
        return np.exp(config.sigma * z), rng.random(_BLOCK)


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
