"""Supervised fine-tuning: maximum likelihood of given completions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.aggregation import aggregate
from rlserve.trainers.algorithms.base import Credit, Experience, PolicyLoss, PolicyTokens, TokenWeights
from rlserve.trainers.algorithms.supervised.base import Supervised
from rlserve.trainers.algorithms.supervised.config import SFTConfig

_MAX_EXPONENT = 700.0
"""Of a number that is finite in float64."""


class SFT(Supervised):
    """The mean over all trained tokens of a batch, whichever sample they are of, of minus their log-probability."""

    def __init__(self, config: SFTConfig) -> None:
        self.needs = config.needs

    def credit(self, experience: Experience) -> Credit:
        """None: all tokens are right."""
        nothing_K = np.zeros(int(experience.lengths.sum()))
        return Credit(rewards=nothing_K, advantages=nothing_K, policy_advantages=nothing_K)

    def token_weights(self, lengths: NDArray[np.int32], is_kept: NDArray[np.bool_]) -> TokenWeights:
        """All alike."""
        return aggregate("token-mean", lengths, is_kept, None)

    def policy_loss(self, tokens: PolicyTokens) -> PolicyLoss:
        """Minus the log-probability."""
        loss = -tokens.log_probs
        return PolicyLoss(per_token=loss, losses={"train/loss": loss}, means={})

    def judge(self, experience: Experience) -> Mapping[str, float]:
        """The same over all samples, and the perplexity, which is its exponential."""
        assert experience.log_probs is not None
        loss = -float(experience.log_probs.mean(dtype=np.float64))
        return {"loss": loss, "perplexity": math.exp(min(loss, _MAX_EXPONENT))}
