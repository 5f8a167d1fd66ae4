"""What all algorithms do alike: rewards of tokens, the policy's loss, and how tokens make the loss of a mini-batch."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.algorithms.advantages.covariance import covariances, drawn_between, largest
from rlserve.trainers.algorithms.advantages.token_rewards import token_rewards
from rlserve.trainers.algorithms.aggregation import aggregate
from rlserve.trainers.algorithms.base import (
    Algorithm,
    Credit,
    Experience,
    FloatArray,
    PolicyLoss,
    PolicyTokens,
    TokenWeights,
)
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.kl import kl_divergence
from rlserve.trainers.algorithms.losses.factory import POLICY_LOSSES
from rlserve.trainers.algorithms.rollout_correction.correction import correct
from rlserve.trainers.batch import LENGTH

ConfigT = TypeVar("ConfigT", bound=UpdateConfig)


class PolicyGradient(Algorithm, Generic[ConfigT]):
    """Leaves the advantages to its subclasses."""

    def __init__(self, config: ConfigT) -> None:
        self.needs = config.needs
        self.num_epochs = config.num_epochs
        self.num_mini_batches = config.num_mini_batches
        self._config = config

    def credit(self, experience: Experience) -> Credit:
        """By ``estimate``, from rewards less penalties."""
        credit = self.estimate(token_rewards(experience, self._config), experience)
        if self._config.selects_tokens:
            credit = dataclasses.replace(credit, is_selected=self._selected(credit, experience))
        if self._config.mask_truncated_completions:
            ended = np.array([reason != LENGTH for reason in experience.finish_reasons])
            credit = dataclasses.replace(credit, is_kept=np.repeat(ended, experience.lengths))
        return credit

    @abstractmethod
    def estimate(self, rewards_K: FloatArray, experience: Experience) -> Credit:
        """Advantages, and returns where there is a critic, from the rewards of tokens."""

    def _selected(self, credit: Credit, experience: Experience) -> NDArray[np.bool_]:
        """[K] the tokens that ``clip_cov`` and ``kl_cov`` treat apart."""
        config = self._config
        assert experience.log_probs is not None
        found = covariances(experience.log_probs.astype(np.float64), credit.policy_advantages)
        if config.loss_mode == "clip_cov":
            return drawn_between(found, config.clip_cov_ratio, config.clip_cov_lb, config.clip_cov_ub)
        return largest(found, config.kl_cov_ratio)

    def token_weights(self, lengths: NDArray[np.int32], is_kept: NDArray[np.bool_]) -> TokenWeights:
        """By ``loss_agg_mode``."""
        return aggregate(self._config.loss_agg_mode, lengths, is_kept, self._config.loss_scale_factor)

    def policy_loss(self, tokens: PolicyTokens) -> PolicyLoss:
        """The surrogate times the correction's weights, plus the KL divergence, less the entropy."""
        config = self._config
        if config.rollout_correction.bypass_mode:
            tokens = dataclasses.replace(tokens, old_log_probs=tokens.behaviour_log_probs)
        term = POLICY_LOSSES[config.loss_mode](tokens, config)
        correction = correct(tokens, config.rollout_correction)
        surrogate = correction.weights * term.per_token
        losses: dict[str, Tensor] = {"actor/pg_loss": surrogate}
        per_token = surrogate
        if tokens.entropies is not None:
            per_token = per_token - config.entropy_coefficient * tokens.entropies
        if config.kl_loss_coefficient > 0:
            assert tokens.reference_log_probs is not None
            losses["actor/kl_loss"] = kl_divergence(tokens.log_probs, tokens.reference_log_probs, config.kl_loss_type)
            per_token = per_token + config.kl_loss_coefficient * losses["actor/kl_loss"]
        return PolicyLoss(
            per_token=per_token,
            losses=losses,
            means={"actor/pg_clipfrac": term.is_clipped, **correction.means},
        )
