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

from rlserve.trainers.algorithms.base import Credit, Experience, PolicyLoss, PolicyTokens, ValueLoss
from rlserve.trainers.batch import Batch

_MAX_EXPONENT = 20.0
"""Beyond it the estimate of one token would drown all others."""


def batch_metrics(batch: Batch, num_steps: int) -> dict[str, float]:
    """Scores, lengths and staleness of the samples, for a trainer that has taken ``num_steps`` steps."""
    staleness = num_steps - batch.weight_versions[batch.loss_mask]
    return {
        **_spread("critic/score", batch.rewards),
        **length_metrics(batch),
        "training/staleness/mean": float(staleness.mean()),
        "training/staleness/max": float(staleness.max()),
    }


def length_metrics(batch: Batch) -> dict[str, float]:
    """Tokens of prompts, and trained tokens of responses."""
    return {
        **_spread("response_length", batch.trained_lengths),
        **_spread("prompt_length", batch.prompt_lengths),
    }


def credit_metrics(experience: Experience, credit: Credit) -> dict[str, float]:
    """Rewards of whole samples less any penalty, and advantages of tokens; with a critic, returns and old values."""
    sample_starts = np.cumsum(experience.lengths) - experience.lengths
    sample_rewards = np.add.reduceat(_rounded(credit.rewards), sample_starts)
    found = {
        **_spread("critic/rewards", sample_rewards),
        **_spread("critic/advantages", _rounded(credit.advantages)),
        **credit.metrics,
    }
    if credit.returns is None or experience.values is None:
        return found
    returns, old_values = _rounded(credit.returns), _rounded(experience.values)
    unexplained = (returns - old_values).var() / (returns.var() + 1e-5)
    return {
        **found,
        **_spread("critic/returns", returns),
        **_spread("critic/values", old_values),
        "critic/vf_explained_var": float(1 - unexplained),
    }


def mismatch_metrics(batch: Batch, raw_log_probs: NDArray[np.float32], num_steps: int) -> dict[str, float]:
    """The engine's raw log-probabilities against the trainer's, [A] of the start of the step."""
    newest = int(batch.weight_versions[batch.loss_mask].max())
    is_newest = (batch.weight_versions == newest) & batch.loss_mask
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


def reference_metrics(
    log_probs: NDArray[np.float32], reference_log_probs: NDArray[np.float32] | None
) -> dict[str, float]:
    """KL divergence of the policy at the start of the step from the frozen reference, per token, by two estimates from
    log-probabilities [K]; nothing where there is no reference.

    With d = log π - log π_reference of a sampled token, ``critic/kl`` is the mean of d, which is what the reward is
    reduced by and can be negative; ``critic/kl_k3`` that of exp(-d) - 1 + d, which has the same expectation and never
    is (Schulman 2020, "Approximating KL divergence", k1 and k3). Both hold for tokens drawn from π over the whole
    vocabulary.
    """
    if reference_log_probs is None:
        return {}
    difference = log_probs.astype(np.float64) - reference_log_probs
    exponent = np.minimum(-difference, _MAX_EXPONENT)
    return {"critic/kl": float(difference.mean()), "critic/kl_k3": float((np.expm1(exponent) + difference).mean())}


def policy_metrics(tokens: PolicyTokens) -> dict[str, float]:
    """The policy at all tokens of a mini-batch, whatever the algorithm.

    Without ``entropies``, ``actor/entropy`` is their one-sample estimate, minus the log-probability of what was
    sampled: it costs nothing, where the entropies of all tokens need the whole distribution of each.

    ``training/behaviour_kl`` is the one-sample estimate of the KL divergence of the sampling distribution from the
    policy at the start of the step, and ``training/behaviour_kl_k3`` the same by k3; ``actor/ppo_kl`` is that of the
    latter from the policy being updated. ``training/importance_weight_ess`` is (Σw)² / (n Σw²) of the n tokens'
    importance weights w before any threshold: the share of the tokens that as many fresh ones would be worth.
    """
    log_ratios = _double(tokens.old_log_probs - tokens.behaviour_log_probs).clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
    weights = log_ratios.exp()
    return {
        "actor/ppo_kl": _mean(tokens.old_log_probs - tokens.log_probs),
        "actor/entropy": _mean(-tokens.log_probs if tokens.entropies is None else tokens.entropies),
        "training/behaviour_kl": _mean(tokens.behaviour_log_probs - tokens.old_log_probs),
        "training/behaviour_kl_k3": _mean(torch.expm1(log_ratios) - log_ratios),
        "training/importance_weight_ess": float(weights.sum().square() / weights.square().sum() / len(weights)),
    }


def loss_metrics(loss: PolicyLoss | ValueLoss, weights: Tensor, normaliser: float) -> dict[str, float]:
    """What an algorithm reports of its loss over all tokens of a mini-batch, whose ``weights`` are [a]."""
    added_up = {
        name: float((_double(per_token) * _double(weights)).sum()) / normaliser
        for name, per_token in loss.losses.items()
    }
    return added_up | {name: _mean(per_token) for name, per_token in loss.means.items()}


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
    return float(_double(values).mean())


def _double(values: Tensor) -> Tensor:
    return values.detach().to(torch.float64)


def _rounded(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """As the losses see them: float32."""
    return values.astype(np.float32).astype(np.float64)
