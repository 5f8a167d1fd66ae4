"""Learning a reward from preferences (Bradley and Terry 1952).

A batch has pairs: the chosen answer, then the rejected one, each with one trained token, at which the model's value is
its score. The loss of a pair needs both, which may be computed apart. But its gradient is that of a sum of scores, each
times a number that follows from all scores before the update: the numbers are the credit, and a step makes one update.

Legend: B samples, P = B / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import (
    ActorCritic,
    Credit,
    Experience,
    FloatArray,
    PolicyLoss,
    PolicyTokens,
    TokenWeights,
    ValueLoss,
    ValueTokens,
)
from rlserve.trainers.algorithms.supervised.base import Supervised
from rlserve.trainers.algorithms.supervised.config import MARGIN, RewardModelConfig


class RewardModel(Supervised, ActorCritic):
    """The mean over pairs of -log sigmoid(chosen - rejected - margin)."""

    def __init__(self, config: RewardModelConfig) -> None:
        self.needs = config.needs
        self._centering = config.center_rewards_coefficient

    def credit(self, experience: Experience) -> Credit:
        """The derivative of the sum of the pairs' losses by each score, as ``returns``."""
        scores_P2, gaps_P = _pairs(experience)
        pulls_P = 1.0 / (1.0 + np.exp(gaps_P))  # the probability that the rejected answer is preferred
        centering_P = 2.0 * self._centering * scores_P2.sum(axis=1)
        derivatives_B = np.stack([centering_P - pulls_P, centering_P + pulls_P], axis=1).flatten()
        nothing_B = np.zeros_like(derivatives_B)
        return Credit(rewards=nothing_B, advantages=nothing_B, policy_advantages=nothing_B, returns=derivatives_B)

    def token_weights(self, lengths: NDArray[np.int32], is_kept: NDArray[np.bool_]) -> TokenWeights:
        """A sum over scores, a mean over pairs."""
        return TokenWeights(per_token=np.ones(len(lengths), dtype=np.float32), normaliser=len(lengths) / 2)

    def policy_loss(self, tokens: PolicyTokens) -> PolicyLoss:
        """There is none."""
        raise AssertionError("a model that scores gives no log-probabilities")

    def value_loss(self, tokens: ValueTokens) -> ValueLoss:
        """Something with the gradient of the loss: each score times its derivative."""
        return ValueLoss(per_token=tokens.returns * tokens.values)

    def judge(self, experience: Experience) -> Mapping[str, float]:
        """The loss; the share of pairs whose chosen answer has the higher score; how much higher, in the mean; and the
        mean score of all answers."""
        scores_P2, gaps_P = _pairs(experience)
        losses_P = np.logaddexp(0.0, -gaps_P) + self._centering * scores_P2.sum(axis=1) ** 2
        above_P = scores_P2[:, 0] - scores_P2[:, 1]
        return {
            "loss": float(losses_P.mean()),
            "accuracy": float((above_P > 0).mean()),
            "score_margin": float(above_P.mean()),
            "score": float(scores_P2.mean()),
        }


def _pairs(experience: Experience) -> tuple[FloatArray, FloatArray]:
    """Scores [P, 2], chosen and rejected, and by how much each chosen one is above the other and the margin, [P]."""
    assert experience.values is not None
    assert (experience.lengths == 1).all(), "a sample has one score"
    scores_P2 = experience.values.astype(np.float64).reshape(-1, 2)
    gaps_P = scores_P2[:, 0] - scores_P2[:, 1]
    if MARGIN in experience.reward_components:
        gaps_P = gaps_P - experience.reward_components[MARGIN].astype(np.float64)[::2]
    return scores_P2, gaps_P
