"""Rejection of tokens and answers that the policy at the start of the step would hardly have made.

Legend: K trained tokens of all samples end to end.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import Experience
from rlserve.trainers.algorithms.kl import kl_divergence
from rlserve.trainers.algorithms.rollout_correction.config import RolloutCorrectionConfig
from rlserve.trainers.algorithms.whole_samples import over_samples


def rejected_tokens(experience: Experience, config: RolloutCorrectionConfig) -> NDArray[np.bool_]:
    """[K] where the estimate of the divergence, of a token or over its answer, is beyond the threshold."""
    assert config.rollout_rs is not None
    assert experience.log_probs is not None
    level, _, estimator = config.rollout_rs.rpartition("_")
    behaviour, old = (
        torch.from_numpy(column.astype(np.float64)) for column in (experience.behaviour_log_probs, experience.log_probs)
    )
    divergence = kl_divergence(behaviour, old, estimator)  # type: ignore[arg-type]
    lengths = torch.from_numpy(experience.lengths)
    samples = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    match level:
        case "seq_sum":
            divergence = over_samples("sum", divergence, samples)
        case "seq_mean":
            divergence = over_samples("mean", divergence, samples)
        case "seq_max":
            divergence = over_samples("max", divergence.abs(), samples)
    is_rejected: NDArray[np.bool_] = (divergence.abs() > config.rollout_rs_threshold).numpy()
    return is_rejected
