"""Metrics of a step under verl's names: pure functions of gathered arrays, so the same on every rank.

``training/log_prob_diff_*`` and ``training/rollout_probs_diff_mean`` compare the engine's raw log-probabilities
with the trainer's at the start of the step, over the tokens made by the newest weight version in the batch.
``training/log_prob_diff_staleness`` is how many steps old that version is: at 0 the two should differ by
arithmetic alone, above 0 they also differ by the updates in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.algorithms.losses import LossTerm
from rlserve.trainers.algorithms.ppo import PolicyTerms
from rlserve.trainers.batch import Batch
from rlserve.trainers.experience import Experience, Scores

_MAX_EXPONENT = 20.0
"""Beyond it the estimate of one token would drown all others."""


def batch_metrics(batch: Batch, num_steps: int) -> dict[str, float]:
    """Scores, lengths and staleness of the samples, for a trainer that has taken ``num_steps`` steps."""
    staleness = num_steps - batch.weight_versions
    return {
        **_spread("critic/score", batch.rewards),
        **_spread("response_length", batch.response_lengths),
        **_spread("prompt_length", batch.prompt_lengths),
        "training/staleness/mean": float(staleness.mean()),
        "training/staleness/max": float(staleness.max()),
    }


def experience_metrics(batch: Batch, experience: Experience) -> dict[str, float]:
    """Rewards of whole samples with the KL penalty; advantages, returns and old values of tokens."""
    sample_ends = np.cumsum(batch.response_lengths)[:-1]
    sample_rewards = [float(part.sum()) for part in np.split(_float64(experience.rewards), sample_ends)]
    returns, old_values = _float64(experience.returns), _float64(experience.old_values)
    unexplained = (returns - old_values).var() / (returns.var() + 1e-5)
    return {
        **_spread("critic/rewards", sample_rewards),
        **_spread("critic/advantages", _float64(experience.advantages)),
        **_spread("critic/returns", returns),
        **_spread("critic/values", old_values),
        "critic/vf_explained_var": float(1 - unexplained),
    }


def mismatch_metrics(batch: Batch, raw_log_probs: NDArray[np.float32], num_steps: int) -> dict[str, float]:
    """The engine's raw log-probabilities against the trainer's, [A] of the start of the step."""
    newest = int(batch.weight_versions.max())
    is_newest = batch.weight_versions == newest
    engine = batch.log_probs[is_newest].astype(np.float64)
    trainer = raw_log_probs[is_newest].astype(np.float64)
    difference = np.abs(engine - trainer)
    return {
        "training/log_prob_diff_mean": float(difference.mean()),
        "training/log_prob_diff_max": float(difference.max()),
        "training/log_prob_diff_staleness": float(num_steps - newest),
        # Whatever an engine says, no probability is above 1.
        "training/rollout_probs_diff_mean": float(np.abs(np.exp(np.minimum(engine, 0.0)) - np.exp(trainer)).mean()),
    }


def reference_metrics(scores: Scores) -> dict[str, float]:
    """KL divergence from the frozen reference, per token, by two estimates; nothing where there is no reference.

    With d = log π - log π_reference of a sampled token, ``critic/kl`` is the mean of d, which is what the reward is
    reduced by and can be negative; ``critic/kl_k3`` that of exp(-d) - 1 + d, which has the same expectation and never
    is (Schulman 2020, "Approximating KL divergence", k1 and k3). Both hold for tokens drawn from π over the whole
    vocabulary.
    """
    if scores.reference_log_probs is None:
        return {}
    assert scores.log_probs is not None
    difference = scores.log_probs.astype(np.float64) - scores.reference_log_probs
    exponent = np.minimum(-difference, _MAX_EXPONENT)
    return {"critic/kl": float(difference.mean()), "critic/kl_k3": float((np.expm1(exponent) + difference).mean())}


def update_metrics(
    policy: PolicyTerms, value: LossTerm, *, log_probs: Tensor, entropies: Tensor | None, behaviour_log_probs: Tensor
) -> dict[str, float]:
    """Losses of one update over all tokens of its mini-batch; the tensors are [a].

    Without ``entropies``, ``actor/entropy`` is their one-sample estimate, minus the log-probability of what was
    sampled: it costs nothing, where the entropies of all tokens need the whole distribution of each.

    ``training/behaviour_kl`` is the one-sample estimate of the KL divergence of the sampling distribution from the
    policy at the start of the step; ``actor/ppo_kl`` that of the latter from the policy being updated.
    """
    return {
        "actor/pg_loss": _mean(policy.loss.per_token),
        "actor/pg_clipfrac": _mean(policy.loss.is_clipped),
        "actor/ppo_kl": _mean(policy.old_log_probs - log_probs),
        "actor/entropy": _mean(-log_probs if entropies is None else entropies),
        "critic/vf_loss": _mean(value.per_token),
        "critic/vf_clipfrac": _mean(value.is_clipped),
        "training/importance_weight_mean": _mean(policy.weights),
        "training/behaviour_kl": _mean(behaviour_log_probs - policy.old_log_probs),
    }


def average(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over the updates of a step, name by name."""
    return {name: float(np.mean([update[name] for update in metrics])) for name in metrics[0]}


def _spread(name: str, values: NDArray[np.floating] | NDArray[np.integer] | Sequence[float]) -> dict[str, float]:
    return {
        f"{name}/mean": float(np.mean(values, dtype=np.float64)),
        f"{name}/max": float(np.max(values)),
        f"{name}/min": float(np.min(values)),
    }


def _mean(values: Tensor) -> float:
    return float(values.detach().to(torch.float64).mean())


def _float64(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.detach().cpu().numpy().astype(np.float64)
    return array
