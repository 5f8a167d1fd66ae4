"""Configuration of the correction. Imports neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields

Rejection = Literal[
    "token_k1",
    "token_k2",
    "token_k3",
    "seq_sum_k1",
    "seq_sum_k2",
    "seq_sum_k3",
    "seq_mean_k1",
    "seq_mean_k2",
    "seq_mean_k3",
    "seq_max_k1",
    "seq_max_k2",
    "seq_max_k3",
]


@dataclass(frozen=True, kw_only=True)
class RolloutCorrectionConfig:
    """What corrects for the distribution that was sampled from: stale weights, top-k and top-p, and the engine's
    arithmetic. Keys are verl's; presets are in ``conf/algorithm/rollout_correction``."""

    rollout_is: Literal["token", "sequence"] | None = "token"
    """Importance weights: π_old / μ of each token, or of the whole answer; None has none. π_old is the policy at the
    start of the step, μ what was sampled from."""
    rollout_is_mode: Literal["truncate", "mask"] = "truncate"
    """Weights outside of the thresholds are set to the threshold (TIS), or to 0 (MIS, IcePop)."""
    rollout_is_threshold: float = 2.0
    """The largest weight."""
    rollout_is_threshold_lower: float = 0.0
    """The smallest weight."""
    rollout_rs: Rejection | None = None
    """Rejection of tokens, or of whole answers by the sum, mean or largest over their tokens, where an estimate of the
    KL divergence of μ from π_old is beyond the threshold. What is rejected is left out of all losses and their means.
    None rejects nothing."""
    rollout_rs_threshold: float = 0.001
    """For ``rollout_rs``; of k1, which may be negative, it bounds the absolute value."""
    bypass_mode: bool = False
    """Take μ for π_old in the ratio of the loss too, as PPO does without a proximal policy of its own (coupled; arXiv
    2110.00641 decouples them)."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "rollout_is_threshold": self.rollout_is_threshold >= 1 or "must be at least 1",
                "rollout_is_threshold_lower": 0 <= self.rollout_is_threshold_lower <= 1 or "must be between 0 and 1",
                "rollout_rs_threshold": self.rollout_rs_threshold > 0 or "must be above 0",
            },
        )

    @property
    def needs_whole_samples(self) -> bool:
        """Whether its weights are of whole answers."""
        return self.rollout_is == "sequence"
