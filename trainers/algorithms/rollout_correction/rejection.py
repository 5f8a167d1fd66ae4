"""Rejection of tokens and answers that the policy at the start of the step would hardly have made.

Legend: a tokens.
"""

from __future__ import annotations

from torch import Tensor

from rlserve.trainers.algorithms.kl import kl_divergence
from rlserve.trainers.algorithms.rollout_correction.config import Rejection
from rlserve.trainers.algorithms.whole_samples import over_samples


def is_rejected(
    behaviour_log_probs: Tensor, old_log_probs: Tensor, samples: Tensor, rejection: Rejection, threshold: float
) -> Tensor:
    """[a] bool: where the estimate of the divergence, of a token or over its answer, is beyond the threshold."""
    level, _, estimator = rejection.rpartition("_")
    divergence = kl_divergence(behaviour_log_probs, old_log_probs, estimator)  # type: ignore[arg-type]
    match level:
        case "seq_sum":
            divergence = over_samples("sum", divergence, samples)
        case "seq_mean":
            divergence = over_samples("mean", divergence, samples)
        case "seq_max":
            divergence = over_samples("max", divergence.abs(), samples)
    return divergence.abs() > threshold
