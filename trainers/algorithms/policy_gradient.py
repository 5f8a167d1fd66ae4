"""What all algorithms do alike: rewards of tokens, the policy's loss, and how tokens make the loss of a mini-batch."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.algorithms.advantages.covariance import covariances, drawn_between, largest
from rlserve.trainers.algorithms.advantages.token_rewards import sample_rewards, token_rewards
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
from rlserve.trainers.algorithms.kl_control import KL_COEFFICIENT, adapted, kl_coefficient, kl_penalties
from rlserve.trainers.algorithms.losses.factory import POLICY_LOSSES
from rlserve.trainers.algorithms.rollout_correction.correction import correct
from rlserve.trainers.algorithms.rollout_correction.rejection import rejected_tokens
from rlserve.trainers.batch import LENGTH

ConfigT = TypeVar("ConfigT", bound=UpdateConfig)


class PolicyGradient(Algorithm, Generic[ConfigT]):
    """Leaves the advantages to its subclasses."""

    def __init__(self, config: ConfigT) -> None:
        self.needs = config.needs
        self.num_epochs = config.num_epochs
        self.num_mini_batches = config.num_mini_batches
        self.carried = {} if config.target_kl is None else {KL_COEFFICIENT: config.kl_coefficient}
        self._config = config

    def credit(self, experience: Experience) -> Credit:
        """By ``estimate``, from rewards less penalties."""
        divergences = None if self._config.target_kl is None else kl_penalties(experience, self._config)
        credit = self.estimate(token_rewards(experience, self._config, divergences), experience)
        if self._config.selects_tokens:
            credit = dataclasses.replace(credit, is_selected=self._selected(credit, experience))
        if self._config.positive_nll_coefficient > 0:
            is_right = experience.rewards > self._config.positive_nll_threshold
            credit = dataclasses.replace(credit, is_imitated=np.repeat(is_right, experience.lengths))
        if divergences is not None:
            credit = self._with_adapted_kl(credit, experience, divergences)
        credit = self._without_left_out(credit, experience)
        return credit if self._config.top_entropy_quantile == 1 else self._with_top_entropies(credit, experience)

    def _with_adapted_kl(self, credit: Credit, experience: Experience, divergences: FloatArray) -> Credit:
        """The coefficient of the next step, which is that of this one but for how far the policy is from the target."""
        config, coefficient = self._config, kl_coefficient(experience, self._config)
        assert config.target_kl is not None, "what the divergences are known for"
        sums_B = sample_rewards(divergences, experience.lengths)
        following = adapted(coefficient, sums_B / experience.lengths, config.target_kl, config.kl_horizon)
        return dataclasses.replace(
            credit,
            carried={KL_COEFFICIENT: following},
            metrics={**credit.metrics, "critic/kl_coefficient": coefficient},
        )

    def _with_top_entropies(self, credit: Credit, experience: Experience) -> Credit:
        """The surrogate is of the tokens of highest entropy alone, among those that the losses do not leave out."""
        assert experience.entropies is not None
        entropies = experience.entropies.astype(np.float64)
        counted = entropies if credit.is_kept is None or not credit.is_kept.any() else entropies[credit.is_kept]
        threshold = float(np.quantile(counted, 1 - self._config.top_entropy_quantile))
        return dataclasses.replace(
            credit,
            in_surrogate=entropies >= threshold,
            metrics={**credit.metrics, "actor/entropy_threshold": threshold},
        )

    def _without_left_out(self, credit: Credit, experience: Experience) -> Credit:
        """Answers that were cut and tokens that are rejected, where the losses are to leave them out."""
        correction = self._config.rollout_correction
        if self._config.mask_truncated_completions:
            ended = np.array([reason != LENGTH for reason in experience.finish_reasons])
            credit = dataclasses.replace(credit, is_kept=np.repeat(ended, experience.lengths))
        if correction.rollout_rs is not None:
            is_rejected = rejected_tokens(experience, correction)
            credit = dataclasses.replace(
                credit,
                is_kept=~is_rejected if credit.is_kept is None else credit.is_kept & ~is_rejected,
                metrics={**credit.metrics, "training/rejected_frac": float(is_rejected.mean())},
            )
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
        """The surrogate times the correction's weights, plus the KL divergence, less the entropy and the likelihood of
        right answers."""
        config = self._config
        if config.rollout_correction.bypass_mode:
            tokens = dataclasses.replace(tokens, old_log_probs=tokens.behaviour_log_probs)
        term = POLICY_LOSSES[config.loss_mode](tokens, config)
        correction = correct(tokens, config.rollout_correction)
        surrogate = correction.weights * term.per_token
        if tokens.in_surrogate is not None:
            surrogate = surrogate.masked_fill(~tokens.in_surrogate, 0.0)
        losses: dict[str, Tensor] = {"actor/pg_loss": surrogate}
        per_token = surrogate
        if tokens.entropies is not None:
            per_token = per_token - config.entropy_coefficient * tokens.entropies
        if config.kl_loss_coefficient > 0:
            assert tokens.reference_log_probs is not None
            divergence = kl_divergence(tokens.log_probs, tokens.reference_log_probs, config.kl_loss_type)
            if config.use_bias_correction_kl:
                divergence = divergence * torch.exp(tokens.log_probs - tokens.old_log_probs)
            losses["actor/kl_loss"] = divergence
            per_token = per_token + config.kl_loss_coefficient * losses["actor/kl_loss"]
        if tokens.imitation_weights is not None:
            losses["actor/positive_nll_loss"] = -tokens.imitation_weights * tokens.log_probs
            per_token = per_token + config.positive_nll_coefficient * losses["actor/positive_nll_loss"]
        return PolicyLoss(
            per_token=per_token,
            losses=losses,
            means={"actor/pg_clipfrac": term.is_clipped, **correction.means},
        )
