"""Configuration of the algorithms, one dataclass each, told apart by ``name``. Imports neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from rlserve.errors import check_fields
from rlserve.trainers.algorithms.needs import Needs
from rlserve.trainers.algorithms.rollout_correction.config import RolloutCorrectionConfig
from rlserve.trainers.algorithms.supervised.config import RewardModelConfig, SFTConfig

LossAggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
LossMode = Literal["vanilla", "gspo", "geo_mean", "cispo", "sapo", "clip_cov", "kl_cov"]
_OF_WHOLE_SAMPLES = ("gspo", "geo_mean")
_OF_COVARIANCES = ("clip_cov", "kl_cov")
KLEstimator = Literal["k1", "k2", "k3", "k1+", "k3+"]
RewardScale = Literal["group", "batch", "none"]


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """What all algorithms have. A key that an algorithm has a default of its own for stands with the algorithm too."""

    num_epochs: int = 1
    """Passes over the samples of a step."""
    num_mini_batches: int = 1
    """Optimizer steps in a pass."""
    loss_mode: LossMode = "vanilla"
    """What is minimised (verl's names): ``vanilla`` PPO's clipped surrogate of each token's ratio, ``gspo`` that of the
    ratio of the whole answer, ``geo_mean`` the geometric mean of the answer's clipped ratios, ``cispo`` REINFORCE with
    the clipped ratio as its weight, ``sapo`` a soft gate in place of clipping, ``clip_cov`` and ``kl_cov`` no gradient
    or a KL penalty where a token takes much entropy."""
    loss_agg_mode: LossAggregation = "token-mean"
    """How the losses of tokens make the loss of a mini-batch: the mean over all tokens; or the mean over answers of the
    sum, of the mean, or of the sum over ``loss_scale_factor``, of each answer's tokens."""
    loss_scale_factor: float | None = None
    """For ``loss_agg_mode=seq-mean-token-sum-norm``: a constant in the place of answers' lengths, such as
    ``${rollout.max_tokens}``."""
    clip_ratio_low: float = 0.2
    """The probability ratio is clipped to 1 less this (arXiv 1707.06347, equation 7)."""
    clip_ratio_high: float = 0.2
    """The probability ratio is clipped to 1 and this; above ``clip_ratio_low`` it is DAPO's clip-higher."""
    clip_ratio_c: float | None = None
    """Bound of the ratio where the advantage is negative, which has none otherwise: verl's dual clip (3.0), TRL's
    ``delta`` (two-sided clip, 4.0). None leaves it out."""
    tau_pos: float = 1.0
    """For ``loss_mode=sapo``: how narrow the gate is where the advantage is positive (arXiv 2511.20347, equation 6)."""
    tau_neg: float = 1.05
    """The same where it is not."""
    top_entropy_quantile: float = 1.0
    """Share of the step's tokens, those of highest entropy, that the surrogate is of; it is 0 at others, which still
    count in means (arXiv 2506.01939, which has 0.2). TRL's name."""
    missing_eos_penalty: float = 0.0
    """Taken off the reward of an answer that was cut by a limit of length."""
    clip_cov_ratio: float = 2e-4
    """For ``loss_mode=clip_cov``: share of tokens that get no gradient (arXiv 2505.22617, equation 11)."""
    clip_cov_lb: float = 1.0
    """They are drawn from those whose covariance of log-probability and advantage is above this ..."""
    clip_cov_ub: float = 5.0
    """... and below this."""
    kl_cov_ratio: float = 2e-4
    """For ``loss_mode=kl_cov``: share of tokens, those of the largest covariance, with a KL penalty (equation 12)."""
    ppo_kl_coef: float = 0.1
    """The weight of that penalty, the absolute log-ratio."""
    mask_truncated_completions: bool = False
    """Leave answers that were cut by a limit of length out of the losses. Their rewards still count in their group."""
    overlong_max_length: int | None = None
    """Length at which an answer gets the whole of DAPO's soft penalty (arXiv 2503.14476, equation 13), such as
    ``${rollout.max_tokens}``. None: no penalty."""
    overlong_buffer_share: float = 0.2
    """Share of ``overlong_max_length``, at its end, over which the penalty rises from 0."""
    overlong_penalty_factor: float = 1.0
    """The whole penalty, taken off the reward."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, subtracted from the loss."""
    positive_nll_coefficient: float = 0.0
    """Weight of the mean negative log-likelihood of right answers' tokens, added to the loss (VAPO, arXiv 2504.05118,
    section 4.3)."""
    positive_nll_threshold: float = 0.5
    """An answer is right where its reward, before any penalty, is above this."""
    kl_coefficient: float = 0.0
    """Weight of the KL penalty to the frozen reference, subtracted from the reward of each token. 0 here and in
    ``kl_loss_coefficient`` keeps no reference."""
    kl_penalty: Literal["k1", "k2", "k3"] = "k1"
    """Estimate of the KL divergence in the reward (Schulman 2020, "Approximating KL divergence")."""
    target_kl: float | None = None
    """Divergence per token, by ``kl_penalty``, that ``kl_coefficient`` is adapted to from step to step (Ziegler et al.
    2019, arXiv 1909.08593, equation 4). None: it stays as it is. verl's name."""
    kl_horizon: float = 10_000.0
    """For ``target_kl``: in so many samples the coefficient grows by a fifth at most, and falls by as much."""
    kl_loss_coefficient: float = 0.0
    """Weight of the KL divergence from the frozen reference, added to the loss of each token."""
    kl_loss_type: KLEstimator = "k3"
    """Estimate of the KL divergence in the loss. With a plus: the value of this one, the gradient of k2, whose mean is
    the gradient of the divergence."""
    use_bias_correction_kl: bool = False
    """Multiply that estimate by the ratio of new to old policy, with its gradient: then the gradient of k3 is right in
    the mean, also after the first update of a step (DeepSeek-V3.2, arXiv 2512.02556). TRL's name."""
    rollout_correction: RolloutCorrectionConfig = field(default_factory=RolloutCorrectionConfig)

    def __post_init__(self) -> None:
        check_fields(self, self._ranges())

    @property
    def needs(self) -> Needs:
        """What the shared part needs."""
        return Needs(
            reference=self.kl_coefficient > 0 or self.kl_loss_coefficient > 0,
            log_probs=self.kl_coefficient > 0
            or self.selects_tokens
            or self.top_entropy_quantile < 1
            or self.rollout_correction.rollout_rs is not None,
            old_entropies=self.top_entropy_quantile < 1,
            entropies=self.entropy_coefficient > 0,
            whole_samples=self.loss_mode in _OF_WHOLE_SAMPLES or self.rollout_correction.needs_whole_samples,
        )

    @property
    def selects_tokens(self) -> bool:
        """Whether the loss treats some tokens apart, by their covariance."""
        return self.loss_mode in _OF_COVARIANCES

    def _ranges(self) -> dict[str, bool | str]:
        has_factor = self.loss_agg_mode == "seq-mean-token-sum-norm"
        factor, bound = self.loss_scale_factor, self.clip_ratio_c
        return {
            "num_epochs": self.num_epochs >= 1 or "must be at least 1",
            "num_mini_batches": self.num_mini_batches >= 1 or "must be at least 1",
            "loss_scale_factor": (factor is not None and factor > 0 if has_factor else factor is None)
            or "must be a number above 0 with loss_agg_mode=seq-mean-token-sum-norm, and null without",
            "clip_ratio_low": 0 < self.clip_ratio_low <= 1 or "must be above 0 and at most 1",
            "clip_ratio_high": self.clip_ratio_high > 0 or "must be above 0",
            "clip_ratio_c": bound is None
            or bound > 1 + self.clip_ratio_high
            or f"must be null or above 1 + clip_ratio_high ({1 + self.clip_ratio_high:g})",
            "tau_pos": self.tau_pos > 0 or "must be above 0",
            "tau_neg": self.tau_neg > 0 or "must be above 0",
            "top_entropy_quantile": 0 < self.top_entropy_quantile <= 1 or "must be above 0 and at most 1",
            "missing_eos_penalty": self.missing_eos_penalty >= 0 or "must be at least 0",
            "clip_cov_ratio": 0 < self.clip_cov_ratio <= 1 or "must be above 0 and at most 1",
            "clip_cov_ub": self.clip_cov_ub > self.clip_cov_lb or f"must be above clip_cov_lb ({self.clip_cov_lb:g})",
            "kl_cov_ratio": 0 < self.kl_cov_ratio <= 1 or "must be above 0 and at most 1",
            "ppo_kl_coef": self.ppo_kl_coef > 0 or "must be above 0",
            "overlong_max_length": self.overlong_max_length is None
            or self.overlong_max_length >= 1
            or "must be null or at least 1",
            "overlong_buffer_share": 0 < self.overlong_buffer_share <= 1 or "must be above 0 and at most 1",
            "overlong_penalty_factor": self.overlong_penalty_factor > 0 or "must be above 0",
            "entropy_coefficient": self.entropy_coefficient >= 0 or "must be at least 0",
            "positive_nll_coefficient": self.positive_nll_coefficient >= 0 or "must be at least 0",
            "kl_coefficient": self.kl_coefficient >= 0 or "must be at least 0",
            "target_kl": self.target_kl is None
            or (self.target_kl > 0 and self.kl_coefficient > 0)
            or "must be null, or above 0 with a kl_coefficient to begin with",
            "kl_horizon": self.kl_horizon > 0 or "must be above 0",
            "kl_loss_coefficient": self.kl_loss_coefficient >= 0 or "must be at least 0",
        }


@dataclass(frozen=True, kw_only=True)
class PPOConfig(UpdateConfig):
    """PPO with a critic (Schulman et al. 2017, arXiv 1707.06347)."""

    name: Literal["ppo"] = "ppo"
    """The algorithm."""
    value_clip: float = 0.2
    """Half-width of the interval around the old value that the new value is clipped to."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (arXiv 1506.02438, equation 16)."""
    length_adaptive_alpha: float | None = None
    """Lambda of an answer of l tokens is 1 - 1 / (alpha l), at least 0, in the place of ``gae_lambda`` (VAPO, arXiv
    2504.05118, which has 0.05). None: the same for all."""
    critic_gae_lambda: float | None = None
    """Lambda of the returns that the critic learns; None: that of the advantages. With 1 they are the rewards that
    followed, without any estimate (VC-PPO, arXiv 2503.01491)."""
    whiten_rewards: bool = False
    """Scale the rewards of the batch's tokens to standard deviation 1 about their mean."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    bound_whitening: bool = True
    """Whitened advantages have standard deviation 1, or less where the rewards that follow the tokens spread less than
    the advantages do: then most of the advantages is the critic's error. Where all rewards are alike the policy stays
    as it is. False whitens to 1 always, as TRL and verl do."""
    bootstrap_truncated: bool = False
    """Count the critic's value of the state after the last token of an answer that was cut by a limit of length. False
    takes every answer's end for the end of the episode, as TRL and verl do."""

    @property
    def needs(self) -> Needs:
        """A critic."""
        return replace(super().needs, critic=True, final_values=self.bootstrap_truncated)

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {
            "value_clip": self.value_clip > 0 or "must be above 0",
            "gamma": 0 <= self.gamma <= 1 or "must be between 0 and 1",
            "gae_lambda": 0 <= self.gae_lambda <= 1 or "must be between 0 and 1",
            "length_adaptive_alpha": self.length_adaptive_alpha is None
            or self.length_adaptive_alpha > 0
            or "must be null or above 0",
            "critic_gae_lambda": self.critic_gae_lambda is None
            or 0 <= self.critic_gae_lambda <= 1
            or "must be null or between 0 and 1",
            "value_coefficient": self.value_coefficient > 0 or "must be above 0",
        }


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(UpdateConfig):
    """GRPO (Shao et al. 2024, arXiv 2402.03300): answers to one prompt are compared with each other; no critic."""

    name: Literal["grpo"] = "grpo"
    """The algorithm."""
    loss_agg_mode: LossAggregation = "seq-mean-token-mean"
    """As for all algorithms; the default is equation 3's."""
    scale_rewards: RewardScale = "group"
    """Divide by the standard deviation of the rewards of a prompt's answers, or of the batch's (Lite PPO, arXiv
    2508.08221), or do not divide (Dr. GRPO, arXiv 2503.20783). TRL's name; verl has ``norm_adv_by_std_in_grpo``."""

    @property
    def needs(self) -> Needs:
        """Several answers a prompt."""
        return replace(super().needs, groups=True)


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(UpdateConfig):
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740): an answer is compared with the others to its prompt."""

    name: Literal["rloo"] = "rloo"
    """The algorithm."""
    loss_agg_mode: LossAggregation = "seq-mean-token-sum"
    """As for all algorithms; the default is the paper's, where an answer is one action."""

    @property
    def needs(self) -> Needs:
        """Several answers a prompt."""
        return replace(super().needs, groups=True)


@dataclass(frozen=True, kw_only=True)
class ReMaxConfig(UpdateConfig):
    """ReMax (Li et al. 2023, arXiv 2310.10505): an answer is compared with the greedy one to its prompt, which is
    generated and scored for that alone. One answer a prompt will do."""

    name: Literal["remax"] = "remax"
    """The algorithm."""
    gamma: float = 1.0
    """Discount per token."""

    @property
    def needs(self) -> Needs:
        """One more answer a prompt."""
        return replace(super().needs, greedy_answer=True)

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {"gamma": 0 <= self.gamma <= 1 or "must be between 0 and 1"}


@dataclass(frozen=True, kw_only=True)
class OPOConfig(UpdateConfig):
    """OPO (Hao et al. 2025, arXiv 2505.23585): the baseline is the mean reward of the group, weighted by length.

    Made for one update a step."""

    name: Literal["opo"] = "opo"
    """The algorithm."""

    @property
    def needs(self) -> Needs:
        """Several answers a prompt."""
        return replace(super().needs, groups=True)


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlusConfig(UpdateConfig):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): returns of tokens on the batch's scale; one answer a prompt will
    do."""

    name: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    """The algorithm."""
    gamma: float = 1.0
    """Discount per token."""

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {"gamma": 0 <= self.gamma <= 1 or "must be between 0 and 1"}


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlusBaselineConfig(UpdateConfig):
    """REINFORCE++ with the mean of a prompt's answers as the baseline (Hu et al. 2025, arXiv 2501.03262)."""

    name: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    """The algorithm."""

    @property
    def needs(self) -> Needs:
        """Several answers a prompt."""
        return replace(super().needs, groups=True)


AlgorithmConfig = (
    PPOConfig
    | GRPOConfig
    | RLOOConfig
    | ReMaxConfig
    | OPOConfig
    | ReinforcePlusPlusConfig
    | ReinforcePlusPlusBaselineConfig
    | SFTConfig
    | RewardModelConfig
)
"""Any algorithm's; without a ``name`` it is the first."""
