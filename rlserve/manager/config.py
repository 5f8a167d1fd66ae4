"""Configuration of the manager. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class QueueThresholdConfig:
    """The queue-length rule: a long queue of prompts takes slots from training, a short one gives them back."""

    policy: Literal["queue_threshold"] = "queue_threshold"
    """When slots move between training and rollout."""
    interval_s: float = 1.0
    """Time between two decisions."""
    cooldown_s: float = 60.0
    """Least time between the end of one move and the next."""
    queue_high: int = 100
    """Queue length above which one more slot goes to rollout."""
    queue_low: int = 10
    """Queue length below which one slot goes back to training."""
    max_rollout_share: float = 0.8
    """Largest share of the pool that may be rollout."""
    min_rollout_share: float = 0.2
    """Smallest share of the pool that may be rollout."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "interval_s": self.interval_s > 0 or "must be above 0",
                "cooldown_s": self.cooldown_s >= 0 or "must be at least 0",
                "queue_low": 0 <= self.queue_low < self.queue_high
                or f"must be at least 0 and below queue_high ({self.queue_high})",
                "max_rollout_share": 0 < self.max_rollout_share <= 1 or "must be in (0, 1]",
                "min_rollout_share": 0 <= self.min_rollout_share <= self.max_rollout_share
                or f"must be at least 0 and not above max_rollout_share ({self.max_rollout_share})",
            },
        )


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """Nothing ever moves: the split stays as it starts."""

    policy: Literal["static"] = "static"
    """When slots move between training and rollout."""
    interval_s: float = 1.0
    """Time between two looks at the slots, which replace lost ones."""

    def __post_init__(self) -> None:
        check_fields(self, {"interval_s": self.interval_s > 0 or "must be above 0"})


@dataclass(frozen=True, kw_only=True)
class RateMatchingConfig:
    """Slots go where they raise the rate of training most, by the rates that this run has measured, and only where that
    pays for the move."""

    policy: Literal["rate_matching"] = "rate_matching"
    """When slots move between training and rollout."""
    interval_s: float = 1.0
    """Time between two decisions."""
    horizon_s: float = 600.0
    """How long rates are trusted to stay: what a move gains in that time, or in what is left of the run, must
    exceed what it costs."""
    safety: float = 2.0
    """How many times its cost a move must gain."""
    min_gain: float = 0.005
    """Least gain of each move over its cost, as a share of what is trained over the horizon."""
    cooldown_s: float = 60.0
    """Least time between the end of one move and the next in the other direction."""
    max_moves_per_hour: int = 30
    """No more moves for the sake of the rate in any hour."""
    planner_interval_s: float = 180.0
    """Time between two runs of the slow planner, which says in what range the quick rule looks."""
    max_rollout_share: float = 1.0
    """Largest share of the pool that may be rollout; one slot always trains."""
    min_rollout_share: float = 0.0
    """Smallest share of the pool that may be rollout; one slot always rolls out."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "interval_s": self.interval_s > 0 or "must be above 0",
                "horizon_s": self.horizon_s > 0 or "must be above 0",
                "safety": self.safety >= 1 or "must be at least 1",
                "min_gain": 0 <= self.min_gain < 1 or "must be in [0, 1)",
                "cooldown_s": self.cooldown_s >= 0 or "must be at least 0",
                "max_moves_per_hour": self.max_moves_per_hour >= 1 or "must be at least 1",
                "planner_interval_s": self.planner_interval_s > 0 or "must be above 0",
                "max_rollout_share": 0 < self.max_rollout_share <= 1 or "must be in (0, 1]",
                "min_rollout_share": 0 <= self.min_rollout_share <= self.max_rollout_share
                or f"must be at least 0 and not above max_rollout_share ({self.max_rollout_share})",
            },
        )


ManagerConfig = RateMatchingConfig | QueueThresholdConfig | StaticConfig
"""Any policy's; without a ``policy`` it is the first."""
