"""The correction for what was sampled from, against loops over answers and tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from policy_samples import experience_of, random_tokens, rows
from trainer_samples import random_batch

from rlserve.errors import ConfigurationError
from rlserve.trainers import Batch, GRPOConfig, RolloutCorrectionConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.grpo import GRPO
from rlserve.trainers.algorithms.rollout_correction.correction import correct

LENGTHS = [4, 1, 7, 2, 5]


def log_ratios(tokens: PolicyTokens) -> list[np.ndarray]:
    """log π_old - log μ of each answer's tokens."""
    return rows((tokens.old_log_probs - tokens.behaviour_log_probs).numpy(), LENGTHS)


def with_behaviour(tokens: PolicyTokens, *ratios: float) -> PolicyTokens:
    """So that π_old / μ of each token is as given."""
    shifts = torch.log(torch.tensor(ratios, dtype=torch.float64))
    return dataclasses.replace(tokens, behaviour_log_probs=tokens.old_log_probs - shifts)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_weights_are_the_ratios_within_the_thresholds(level: Any, mode: Any) -> None:
    tokens = random_tokens(LENGTHS, spread=0.7)
    config = RolloutCorrectionConfig(
        rollout_is=level, rollout_is_mode=mode, rollout_is_threshold=1.6, rollout_is_threshold_lower=0.6
    )
    expected, is_outside = [], []
    for of_answer in log_ratios(tokens):
        for log_ratio in of_answer:
            ratio = np.exp(of_answer.sum() if level == "sequence" else log_ratio)
            is_outside.append(not 0.6 <= ratio <= 1.6)
            expected.append(min(max(ratio, 0.6), 1.6) if mode == "truncate" else ratio * (0.6 <= ratio <= 1.6))
    found = correct(tokens, config)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.means["training/importance_weight_clipfrac"], is_outside)
    assert 0 < sum(is_outside) < len(is_outside)
    assert not found.weights.requires_grad


def test_without_weights_nothing_is_changed() -> None:
    found = correct(random_tokens(LENGTHS, spread=0.7), RolloutCorrectionConfig(rollout_is=None))
    assert (found.weights == 1).all()


ESTIMATES = {
    "k1": lambda difference: difference,
    "k2": lambda difference: difference**2 / 2,
    "k3": lambda difference: np.exp(-difference) - 1 + difference,
}
LEVELS = {
    "token": lambda estimates: estimates,
    "seq_sum": lambda estimates: np.full(len(estimates), estimates.sum()),
    "seq_mean": lambda estimates: np.full(len(estimates), estimates.mean()),
    "seq_max": lambda estimates: np.full(len(estimates), np.abs(estimates).max()),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_what_is_beyond_the_threshold_is_rejected(level: str, estimate: str) -> None:
    tokens = random_tokens(LENGTHS, spread=0.7)
    estimates = np.concatenate([LEVELS[level](ESTIMATES[estimate](-answer)) for answer in log_ratios(tokens)])
    threshold = float(np.median(np.abs(estimates))) * 1.0001
    config = RolloutCorrectionConfig(
        rollout_is=None,
        rollout_rs=f"{level}_{estimate}",  # type: ignore[arg-type]
        rollout_rs_threshold=threshold,
    )
    seen = experience_of(
        [1.0] * len(LENGTHS),
        LENGTHS,
        log_probs=tokens.old_log_probs.numpy(),
        behaviour_log_probs=tokens.behaviour_log_probs.numpy(),
        finish_reasons=("length", *["stop"] * (len(LENGTHS) - 1)),
    )
    expected = np.abs(estimates) > threshold
    credit = GRPO(GRPOConfig(rollout_correction=config)).credit(seen)
    np.testing.assert_array_equal(credit.is_kept, ~expected)
    assert credit.metrics == {"training/rejected_frac": expected.mean()}
    assert 0 < expected.sum() < len(expected)
    credit = GRPO(GRPOConfig(rollout_correction=config, mask_truncated_completions=True)).credit(seen)
    np.testing.assert_array_equal(credit.is_kept, ~expected & (np.arange(len(expected)) >= LENGTHS[0]))


def test_what_is_rejected_counts_in_no_mean(model_path: str) -> None:
    """A step with answers that are rejected is one without them."""
    batch = random_batch(0)
    far = np.repeat(np.arange(batch.num_samples) % 2 == 1, batch.response_lengths)
    config = GRPOConfig(
        scale_rewards="none",
        loss_agg_mode="token-mean",
        rollout_correction=RolloutCorrectionConfig(rollout_is=None, rollout_rs="seq_mean_k1", rollout_rs_threshold=0.5),
    )
    trainers = [create_trainer(TorchTrainerConfig(), config, model_path=model_path, seed=0) for _ in range(2)]
    behaviour = trainers[0].log_probs(batch) - far.astype(np.float32)
    # Alone in their groups answers would have no advantage: so the others of the group have the same reward.
    batch = dataclasses.replace(
        batch,
        behaviour_log_probs=behaviour,
        group_ids=("0",) * batch.num_samples,
        rewards=np.where(np.arange(batch.num_samples) % 4 < 2, 1.0, -1.0).astype(np.float32),
    )
    kept = batch.select(np.flatnonzero(np.arange(batch.num_samples) % 2 == 0))
    assert kept.rewards.mean() == batch.rewards.mean()
    with_rejected, without = (trainer.step(each) for trainer, each in zip(trainers, (batch, kept), strict=True))
    assert 0 < with_rejected["training/rejected_frac"] < 1
    assert without["training/rejected_frac"] == 0
    for name in ("actor/grad_norm", "actor/pg_loss"):
        assert with_rejected[name] == pytest.approx(without[name], rel=1e-4)
    assert without["actor/grad_norm"] > 0.001


def test_the_policys_loss_is_multiplied_by_the_weights() -> None:
    tokens = with_behaviour(random_tokens([3], spread=0.1), 0.5, 1.5, 9.0)
    plain = GRPO(GRPOConfig(rollout_correction=RolloutCorrectionConfig(rollout_is=None))).policy_loss(tokens)
    found = GRPO(GRPOConfig()).policy_loss(tokens)
    torch.testing.assert_close(found.per_token / plain.per_token, torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64))


def test_bypassing_clips_the_ratio_to_what_was_sampled_from() -> None:
    tokens = random_tokens(LENGTHS, spread=0.5)
    config = GRPOConfig(rollout_correction=RolloutCorrectionConfig(bypass_mode=True))
    found = GRPO(config).policy_loss(tokens).per_token.detach().numpy()
    ratios = np.exp((tokens.log_probs.detach() - tokens.behaviour_log_probs).numpy())
    gains = tokens.advantages.numpy()
    np.testing.assert_allclose(found, -np.minimum(ratios * gains, np.clip(ratios, 0.8, 1.2) * gains), atol=1e-12)


def test_metrics_of_a_step_are_those_written_out(model_path: str) -> None:
    batch = random_batch(0)
    correction = RolloutCorrectionConfig(
        rollout_is_mode="mask", rollout_is_threshold=1.01, rollout_rs="seq_mean_k1", rollout_rs_threshold=0.05
    )
    metrics, ratios = step_and_ratios(model_path, batch, correction)
    flat = np.concatenate(ratios)
    weights = np.exp(flat)
    assert metrics["training/behaviour_kl"] == pytest.approx(-flat.mean(), rel=1e-4)
    assert metrics["training/behaviour_kl_k3"] == pytest.approx(np.mean(weights - 1 - flat), rel=1e-3)
    assert metrics["training/importance_weight_ess"] == pytest.approx(
        weights.sum() ** 2 / len(flat) / (weights**2).sum(), rel=1e-4
    )
    assert metrics["training/importance_weight_clipfrac"] == pytest.approx(np.mean(weights > 1.01))
    assert metrics["training/importance_weight_mean"] == pytest.approx(np.mean(weights * (weights <= 1.01)), rel=1e-4)
    rejected = np.concatenate([np.full(len(answer), abs(answer.mean()) > 0.05) for answer in ratios])
    assert metrics["training/rejected_frac"] == pytest.approx(rejected.mean())
    assert 0 < rejected.mean() < 1


def step_and_ratios(
    model_path: str, batch: Batch, correction: RolloutCorrectionConfig
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Metrics of a step, and log π_old - log μ of each answer's tokens."""
    config = GRPOConfig(rollout_correction=correction, num_epochs=1)
    trainer = create_trainer(TorchTrainerConfig(), config, model_path=model_path, seed=0)
    behaviour = trainer.log_probs(batch) + np.random.default_rng(0).normal(size=batch.num_response_tokens) * 0.2
    batch = dataclasses.replace(batch, behaviour_log_probs=behaviour.astype(np.float32))
    differences = (trainer.log_probs(batch) - batch.behaviour_log_probs).astype(np.float64)
    return trainer.step(batch), rows(differences, batch.response_lengths.tolist())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rollout_is_threshold": 0.5}, "rollout_is_threshold: must be at least 1, got 0.5"),
        ({"rollout_is_threshold_lower": 2.0}, "rollout_is_threshold_lower: must be between 0 and 1, got 2.0"),
        ({"rollout_rs_threshold": 0.0}, "rollout_rs_threshold: must be above 0, got 0.0"),
    ],
)
def test_thresholds_on_the_wrong_side_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        RolloutCorrectionConfig(**changes)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (RolloutCorrectionConfig(), False),
        (RolloutCorrectionConfig(rollout_is="sequence"), True),
        (RolloutCorrectionConfig(rollout_rs="token_k3"), False),
        (RolloutCorrectionConfig(rollout_rs="seq_max_k2"), False),
    ],
)
def test_what_looks_at_whole_answers_gets_them(correction: RolloutCorrectionConfig, expected: bool) -> None:
    assert GRPOConfig(rollout_correction=correction).needs.whole_samples == expected
