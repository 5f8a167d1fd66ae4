"""The contract of an algorithm: what it needs, whose credit a reward is, and what is minimised.

All of it is pure: arrays in, arrays out. An algorithm knows no model, no optimizer and no ranks, and keeps nothing
between two calls: what a step is to know of those before it is carried by the trainer (``Credit.carried``), as its
networks are.

    Experience ──► credit ──► Credit            once a step, over the whole batch
    PolicyTokens ──► policy_loss ──► PolicyLoss    for every update, some tokens at a time
    ValueTokens ──► value_loss ──► ValueLoss       the same, where there is a critic

Only tokens that are trained on come here; those that an environment put into a response are left out before.

Legend: B samples, K trained tokens of all samples end to end, S samples of a mini-batch, a some trained tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.needs import Needs
from rlserve.trainers.batch import GreedyAnswers

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Experience:
    """The samples of a step, and what the networks said about them before its first update.

    What was not asked for in ``Needs`` is None.
    """

    rewards: NDArray[np.float32]
    """[B] the total, one number for a whole response."""
    turn_rewards: NDArray[np.float32] | None = None
    """[K] ``Batch.turn_rewards`` of the trained tokens."""
    reward_components: Mapping[str, NDArray[np.float32]]
    """[B] each: further numbers of the reward by name, NaN where a sample has none."""
    lengths: NDArray[np.int32]
    """[B] sample b has the next ``lengths[b]`` of the K tokens."""
    group_index: NDArray[np.int32]
    """[B] samples with the same number answer the same prompt."""
    finish_reasons: tuple[str, ...]
    """B times why the response ended: ``stop`` or ``length``."""
    greedy_answers: GreedyAnswers | None = None
    behaviour_log_probs: NDArray[np.float32]
    """[K] under the distribution that was sampled from."""
    carried: Mapping[str, float] = field(default_factory=dict)
    """``Credit.carried`` of the step before; before the first, ``Algorithm.carried``."""
    log_probs: NDArray[np.float32] | None
    """[K] under the policy that is trained (see ``losses/base.py``)."""
    entropies: NDArray[np.float32] | None = None
    """[K] of the policy at each token."""
    reference_log_probs: NDArray[np.float32] | None
    """[K] under the frozen reference, at the same temperature."""
    values: NDArray[np.float32] | None
    """[K] the critic's value of the state before each token is made."""
    final_values: NDArray[np.float32] | None
    """[B] the value of the state after a sample that was cut; 0 where the episode ends with the sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Credit:
    """Who is to thank for the rewards; each [K]."""

    rewards: FloatArray
    """Per token: the sample's reward at its last token, or at the last token of each turn, less any penalty."""
    advantages: FloatArray
    """Before any scaling over the batch."""
    policy_advantages: FloatArray
    """What the policy's loss is multiplied by."""
    returns: FloatArray | None = None
    """What the critic is to predict; None where there is no critic."""
    is_kept: NDArray[np.bool_] | None = None
    """False at tokens that the losses leave out; None where they leave out none."""
    is_selected: NDArray[np.bool_] | None = None
    """True at tokens that the policy's loss treats apart; None where it does not."""
    in_surrogate: NDArray[np.bool_] | None = None
    """False at tokens whose surrogate is 0; None where it is of all."""
    is_imitated: NDArray[np.bool_] | None = None
    """True at tokens whose negative log-likelihood the policy's loss has too; None where it has none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further numbers to report."""
    carried: Mapping[str, float] = field(default_factory=dict)
    """What the next step is given. Part of the trainer's state."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenWeights:
    """How the losses of single tokens make the loss of a mini-batch: ``sum(per_token * loss) / normaliser``."""

    per_token: NDArray[np.float32]
    """[tokens of the S samples]"""
    normaliser: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyTokens:
    """Some tokens of a mini-batch, for the policy's loss; each [a] float32.

    Which tokens come together depends on memory alone, so the loss of a token must need that token alone; with
    ``Needs.whole_samples``, that token's sample alone.
    """

    log_probs: Tensor
    """With gradient."""
    old_log_probs: Tensor
    """Of the policy at the start of the step."""
    behaviour_log_probs: Tensor
    """Of the distribution that was sampled from."""
    reference_log_probs: Tensor | None
    advantages: Tensor
    """``Credit.policy_advantages``."""
    entropies: Tensor | None
    """Of the policy at each token, with gradient; None where they are not needed."""
    samples: Tensor
    """int64: the sample that each token is of. The tokens of a sample stand one after the other."""
    is_selected: Tensor | None
    """bool: ``Credit.is_selected``."""
    in_surrogate: Tensor | None = None
    """bool: ``Credit.in_surrogate``."""
    imitation_weights: Tensor | None = None
    """What makes the mean over the mini-batch's tokens of ``Credit.is_imitated`` of a loss that is added up by
    ``TokenWeights``; 0 at all others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueTokens:
    """Some tokens of a mini-batch, for the critic's loss; each [a] float32."""

    values: Tensor
    """With gradient."""
    old_values: Tensor
    """At the start of the step."""
    returns: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyLoss:
    """The policy's loss and what is reported of it; every tensor is [a]."""

    per_token: Tensor
    """Minimised, with all terms."""
    losses: Mapping[str, Tensor]
    """Metrics that are added up as the loss is, by ``TokenWeights``."""
    means: Mapping[str, Tensor]
    """Metrics that are averaged over tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueLoss:
    """The critic's loss and what is reported of it; every tensor is [a]."""

    per_token: Tensor
    """Minimised, with its coefficient."""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """As for ``PolicyLoss``."""
    means: Mapping[str, Tensor] = field(default_factory=dict)
    """As for ``PolicyLoss``."""


class Algorithm(ABC):
    """Credit and losses, given a configuration."""

    needs: Needs
    """What has to be there, and be computed, for ``credit`` and the losses."""
    num_epochs: int
    """Passes over the samples of a step."""
    num_mini_batches: int
    """Updates in a pass."""
    carried: Mapping[str, float] = MappingProxyType({})
    """Numbers that are carried from step to step, as the first step is given them. Their names never change."""

    @abstractmethod
    def credit(self, experience: Experience) -> Credit:
        """Advantages and returns of the whole batch. Every rank computes them from the same gathered arrays."""

    @abstractmethod
    def token_weights(self, lengths: NDArray[np.int32], is_kept: NDArray[np.bool_]) -> TokenWeights:
        """Of the tokens of a mini-batch whose samples have these [S] lengths; 0 where ``Credit.is_kept`` is False."""

    @abstractmethod
    def policy_loss(self, tokens: PolicyTokens) -> PolicyLoss:
        """Per token; its gradient with respect to ``log_probs`` and ``entropies`` trains the policy."""


class ActorCritic(Algorithm):
    """An algorithm that trains a critic beside the policy; its ``needs`` say so."""

    @abstractmethod
    def value_loss(self, tokens: ValueTokens) -> ValueLoss:
        """Per token; its gradient with respect to ``values`` trains the critic."""
