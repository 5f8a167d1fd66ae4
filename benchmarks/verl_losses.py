"""Advantages, losses and gradients of the recipes beside verl's own code, on the same tensors.

    PYTHON_WITH_VERL benchmarks/verl_losses.py --json out.json

verl's functions take padded tensors; ours get the same numbers without padding. Needs an environment with verl (see
``benchmarks/README.md``) and this repository on ``PYTHONPATH``.

verl whitens by the sample's deviation (n - 1), rlserve by the population's. So where advantages are whitened ours are
multiplied by the quotient of the two before they are compared.

Legend: B samples, R longest response, K tokens of all samples end to end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch
from checks import Check, report
from torch import Tensor
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from rlserve.trainers import (
    AlgorithmConfig,
    GRPOConfig,
    OPOConfig,
    PPOConfig,
    ReinforcePlusPlusBaselineConfig,
    ReinforcePlusPlusConfig,
    ReMaxConfig,
    RLOOConfig,
    RolloutCorrectionConfig,
)
from rlserve.trainers.algorithms.advantages.covariance import covariances, drawn_between, largest
from rlserve.trainers.algorithms.base import Experience, PolicyTokens
from rlserve.trainers.algorithms.config import KLEstimator, LossAggregation
from rlserve.trainers.algorithms.factory import create_algorithm
from rlserve.trainers.algorithms.kl import kl_divergence
from rlserve.trainers.algorithms.losses.value import clipped_value_loss
from rlserve.trainers.batch import GreedyAnswers

MAX_DIFFERENCE = 1e-6
LENGTHS = np.array([9, 1, 14, 5, 20, 3, 7, 12], dtype=np.int32)
GROUPS = np.array([0, 0, 1, 1, 1, 2, 2, 2], dtype=np.int32)
SCALE_FACTOR = 24.0
MASK_BR = torch.arange(int(LENGTHS.max()))[None, :] < torch.from_numpy(LENGTHS)[:, None]
NUM_TOKENS = int(LENGTHS.sum())
NO_CORRECTION = RolloutCorrectionConfig(rollout_is=None)
TO_SAMPLE_DEVIATION = ((NUM_TOKENS - 1) / NUM_TOKENS) ** 0.5

_generator = torch.Generator().manual_seed(0)


def normal(number: int) -> Tensor:
    """Float64."""
    return torch.randn(number, generator=_generator, dtype=torch.float64)


def padded(flat_K: Tensor) -> Tensor:
    """[B, R]"""
    return torch.zeros(MASK_BR.shape, dtype=torch.float64).masked_scatter(MASK_BR, flat_K)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def check(name: str, ours: Tensor, theirs: Tensor) -> Check:
    return Check(name=f"{name} beside verl's", value=difference(ours, theirs), bar=MAX_DIFFERENCE, at_least=False)


def experience_of(rewards: Tensor, values: Tensor, greedy: Tensor) -> Experience:
    """Ours, of the same rewards [B] of answers, values [K] and rewards [B] of greedy answers."""
    return Experience(
        rewards=rewards.float().numpy(),
        reward_components={},
        lengths=LENGTHS,
        group_index=GROUPS,
        finish_reasons=("stop",) * len(LENGTHS),
        greedy_answers=GreedyAnswers(
            rewards=greedy.float().numpy(), lengths=LENGTHS, finish_reasons=("stop",) * len(LENGTHS)
        ),
        behaviour_log_probs=np.zeros(NUM_TOKENS, dtype=np.float32),
        log_probs=None,
        reference_log_probs=None,
        values=values.float().numpy(),
        final_values=None,
    )


def advantages() -> Iterator[Check]:
    """Of every estimator that both have."""
    rewards, values, greedy = normal(len(LENGTHS)), normal(NUM_TOKENS), normal(len(LENGTHS))
    token_rewards = torch.zeros(NUM_TOKENS, dtype=torch.float64)
    token_rewards[torch.from_numpy(np.cumsum(LENGTHS) - 1)] = rewards.float().double()
    given: dict[str, Any] = {
        "token_level_rewards": padded(token_rewards),
        "response_mask": MASK_BR.double(),
        "index": GROUPS,
        "values": padded(values.float().double()),
        "reward_baselines": greedy.float().double(),
        "gamma": 0.99,
        "lam": 0.9,
        "config": AlgoConfig(gamma=0.99),
    }
    experience = experience_of(rewards, values, greedy)
    cases: list[tuple[str, AlgorithmConfig, Callable[..., Any], tuple[str, ...], float]] = [
        ("grpo", GRPOConfig(), core_algos.compute_grpo_outcome_advantage, ("index",), 1.0),
        ("rloo", RLOOConfig(), core_algos.compute_rloo_outcome_advantage, ("index",), 1.0),
        ("opo", OPOConfig(), core_algos.compute_opo_outcome_advantage, ("index",), 1.0),
        ("remax", ReMaxConfig(), core_algos.compute_remax_outcome_advantage, ("reward_baselines",), 1.0),
        (
            "reinforce_plus_plus",
            ReinforcePlusPlusConfig(gamma=0.99),
            core_algos.compute_reinforce_plus_plus_outcome_advantage,
            ("config",),
            TO_SAMPLE_DEVIATION,
        ),
        (
            "reinforce_plus_plus_baseline",
            ReinforcePlusPlusBaselineConfig(),
            core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage,
            ("index",),
            TO_SAMPLE_DEVIATION,
        ),
        (
            "gae",
            PPOConfig(gamma=0.99, gae_lambda=0.9, bound_whitening=False),
            core_algos.compute_gae_advantage_return,
            ("values", "gamma", "lam"),
            TO_SAMPLE_DEVIATION,
        ),
    ]
    for name, config, theirs, names, factor in cases:
        arguments = {each: given[each] for each in ("token_level_rewards", "response_mask", *names)}
        found, returns = theirs(**arguments)
        credit = create_algorithm(config).credit(experience)
        yield check(f"{name}: advantages", torch.from_numpy(credit.policy_advantages) * factor, found[MASK_BR])
        if credit.returns is not None:
            yield check(f"{name}: returns", torch.from_numpy(credit.returns), returns[MASK_BR])


def actor_config(config: GRPOConfig) -> Any:
    """The same as verl's. It always has a dual clip, and has no batch beyond the samples that it is given."""
    theirs = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio_low=config.clip_ratio_low,
        clip_ratio_high=config.clip_ratio_high,
        clip_ratio_c=config.clip_ratio_c or 1e6,
    )
    theirs.global_batch_info.clear()
    for key in ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef"):
        object.__setattr__(theirs.policy_loss, key, getattr(config, key))
    return theirs


def policy_losses() -> Iterator[Check]:
    """Of every loss mode, in GRPO's aggregation."""

    def clips(low: float, high: float) -> dict[str, float]:
        return {"clip_ratio_low": low, "clip_ratio_high": high}

    cases: dict[str, GRPOConfig] = {
        "vanilla": GRPOConfig(**clips(0.2, 0.28)),
        "vanilla, dual clip": GRPOConfig(clip_ratio_c=1.5),
        "gspo": GRPOConfig(**clips(0.03, 0.04)),
        "geo_mean": GRPOConfig(**clips(0.2, 0.3)),
        "cispo": GRPOConfig(**clips(0.9, 0.2)),
        "sapo": GRPOConfig(),
        # All candidates, since verl draws others than we do, and no ratio clipped, since verl draws none of these.
        "clip_cov": GRPOConfig(**clips(1.0, 20.0), clip_cov_ratio=1.0, clip_cov_lb=0.3),
        "kl_cov": GRPOConfig(kl_cov_ratio=0.1, ppo_kl_coef=0.3),
    }
    for name, ours in cases.items():
        mode: Any = name.split(",")[0]
        config = dataclasses.replace(ours, loss_mode=mode, rollout_correction=NO_CORRECTION)
        yield from compared_policy_loss(name, config, actor_config(config))


def compared_policy_loss(name: str, config: GRPOConfig, theirs: Any) -> Iterator[Check]:
    old = -normal(NUM_TOKENS).abs() - 0.1
    new = old + 0.3 * normal(NUM_TOKENS)
    of_token = normal(len(LENGTHS)).repeat_interleave(torch.from_numpy(LENGTHS))
    flat, matrix = new.clone().requires_grad_(), padded(new).requires_grad_()
    algorithm = create_algorithm(config)
    weights = algorithm.token_weights(LENGTHS, np.ones(NUM_TOKENS, dtype=bool))
    tokens = PolicyTokens(
        log_probs=flat,
        old_log_probs=old,
        behaviour_log_probs=old,
        reference_log_probs=None,
        advantages=of_token,
        entropies=None,
        samples=torch.arange(len(LENGTHS)).repeat_interleave(torch.from_numpy(LENGTHS)),
        is_selected=selected(config, new, of_token),
    )
    loss = (algorithm.policy_loss(tokens).per_token * torch.from_numpy(weights.per_token)).sum() / weights.normaliser
    loss.backward()
    function = core_algos.get_policy_loss_fn(config.loss_mode)
    their_loss, _ = function(
        old_log_prob=padded(old),
        log_prob=matrix,
        advantages=padded(of_token),
        response_mask=MASK_BR.double(),
        loss_agg_mode=config.loss_agg_mode,
        config=theirs,
    )
    their_loss.backward()
    assert flat.grad is not None
    assert matrix.grad is not None
    yield check(f"{name}: loss", loss.detach(), their_loss.detach())
    yield check(f"{name}: gradient", flat.grad, matrix.grad[MASK_BR])


def selected(config: GRPOConfig, new: Tensor, of_token: Tensor) -> Tensor:
    """verl takes covariances anew for each update, from the policy that it changes."""
    found = covariances(new.numpy(), of_token.numpy())
    if config.loss_mode == "clip_cov":
        return torch.from_numpy(drawn_between(found, config.clip_cov_ratio, config.clip_cov_lb, config.clip_cov_ub))
    return torch.from_numpy(largest(found, config.kl_cov_ratio))


def aggregations() -> Iterator[Check]:
    """Of every mode, with an answer that is left out whole and one of which some tokens are."""
    losses = normal(NUM_TOKENS)
    is_kept = np.ones(NUM_TOKENS, dtype=bool)
    is_kept[: LENGTHS[0]] = False
    is_kept[-5:] = False
    mask_BR = padded(torch.from_numpy(is_kept.astype(float)))
    for mode in get_args(LossAggregation):
        factor = SCALE_FACTOR if mode == "seq-mean-token-sum-norm" else None
        config = GRPOConfig(loss_agg_mode=mode, loss_scale_factor=factor)
        weights = create_algorithm(config).token_weights(LENGTHS, is_kept)
        ours = (losses * torch.from_numpy(weights.per_token)).sum() / weights.normaliser
        theirs = core_algos.agg_loss(padded(losses), mask_BR, mode, loss_scale_factor=factor)
        yield check(f"{mode}: loss", ours, theirs)


def divergences() -> Iterator[Check]:
    """Every estimate of the KL divergence, with its gradient."""
    reference = normal(NUM_TOKENS)
    policy = reference + 2 * normal(NUM_TOKENS)
    for estimator in get_args(KLEstimator):
        ours, theirs = (policy.clone().requires_grad_() for _ in range(2))
        found = kl_divergence(ours, reference, estimator)
        expected = core_algos.kl_penalty(theirs, reference, estimator)
        found.sum().backward()
        expected.sum().backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        yield check(f"KL by {estimator}: value", found.detach(), expected.detach())
        yield check(f"KL by {estimator}: gradient", ours.grad, theirs.grad)


def value_loss() -> Iterator[Check]:
    old, returns = normal(NUM_TOKENS), normal(NUM_TOKENS)
    values = old + 0.5 * normal(NUM_TOKENS)
    ours, theirs = values.clone().requires_grad_(), padded(values).requires_grad_()
    found = clipped_value_loss(ours, old, returns, 0.2).per_token.mean()
    expected, _ = core_algos.compute_value_loss(theirs, padded(returns), padded(old), MASK_BR.double(), 0.2)
    found.backward()
    expected.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    yield check("value: loss", found.detach(), expected.detach())
    yield check("value: gradient", ours.grad, theirs.grad[MASK_BR])


def all_checks() -> Iterator[Check]:
    """Of all that both have."""
    for part in (advantages, policy_losses, aggregations, divergences, value_loss):
        yield from part()


if __name__ == "__main__":
    raise SystemExit(report(__doc__, all_checks))
