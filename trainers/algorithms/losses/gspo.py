"""GSPO (Zheng et al. 2025, arXiv 2507.18071): the ratio of a whole answer is clipped, not that of each token."""

from __future__ import annotations

import torch

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.losses.base import LossTerm
from rlserve.trainers.algorithms.losses.vanilla import clipped_surrogate
from rlserve.trainers.algorithms.whole_samples import over_samples


def gspo(tokens: PolicyTokens, config: UpdateConfig) -> LossTerm:
    """The clipped surrogate of s = (π(answer) / π_old(answer)) ^ (1 / length), for each token of the answer (equations
    5 and 7)."""
    ratios = torch.exp(over_samples("mean", tokens.log_probs - tokens.old_log_probs, tokens.samples))
    return clipped_surrogate(ratios, tokens.advantages, config)
