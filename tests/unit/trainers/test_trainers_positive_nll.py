"""The negative log-likelihood of right answers (VAPO), against its closed form."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import torch
from policy_samples import experience_of, random_tokens
from trainer_samples import random_batch

from rlserve.trainers import GRPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.algorithms.aggregation import mean_weights
from rlserve.trainers.algorithms.config import LossAggregation
from rlserve.trainers.algorithms.grpo import GRPO

LENGTHS = np.array([4, 1, 7, 2, 5], dtype=np.int32)
IS_RIGHT = np.repeat([True, False, True, False, False], LENGTHS)
IS_KEPT = np.repeat([True, True, True, True, False], LENGTHS)


@pytest.mark.parametrize("mode", get_args(LossAggregation))
@pytest.mark.parametrize("kept", [IS_KEPT, ~IS_RIGHT], ids=["one answer left out", "all right answers left out"])
def test_it_is_the_mean_over_the_tokens_of_right_answers_whatever_the_mode(mode: Any, kept: np.ndarray) -> None:
    factor = 30.0 if mode == "seq-mean-token-sum-norm" else None
    algorithm = GRPO(GRPOConfig(loss_agg_mode=mode, loss_scale_factor=factor, positive_nll_coefficient=0.1))
    plain = GRPO(GRPOConfig(loss_agg_mode=mode, loss_scale_factor=factor))
    weights = algorithm.token_weights(LENGTHS, kept)
    tokens = dataclasses.replace(
        random_tokens(LENGTHS.tolist(), spread=0.2), imitation_weights=torch.from_numpy(mean_weights(IS_RIGHT, weights))
    )

    def total(loss: torch.Tensor) -> torch.Tensor:
        return (loss * torch.from_numpy(weights.per_token)).sum() / weights.normaliser

    added = total(algorithm.policy_loss(tokens).per_token - plain.policy_loss(tokens).per_token)
    counts = IS_RIGHT & kept
    log_probs = tokens.log_probs.detach().numpy()
    expected = -0.1 * log_probs[counts].mean() if counts.any() else 0.0
    assert added.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(added, tokens.log_probs)
    np.testing.assert_allclose(gradient, -0.1 * counts / max(counts.sum(), 1), rtol=1e-5)


def test_answers_are_right_by_their_reward_before_penalties() -> None:
    seen = experience_of([1.0, 0.5, 0.6, -1.0, 0.0], LENGTHS.tolist(), finish_reasons=("length",) * 5)
    config = GRPOConfig(positive_nll_coefficient=0.1, missing_eos_penalty=3.0)
    credit = GRPO(config).credit(seen)
    np.testing.assert_array_equal(credit.is_imitated, np.repeat([True, False, True, False, False], LENGTHS))
    assert GRPO(GRPOConfig()).credit(seen).is_imitated is None


def test_a_step_makes_right_answers_likelier_though_no_answer_has_an_advantage(model_path: str) -> None:
    batch = random_batch(0)
    batch = dataclasses.replace(batch, rewards=np.ones_like(batch.rewards))
    trainer = create_trainer(
        TorchTrainerConfig(learning_rate=1e-3), GRPOConfig(positive_nll_coefficient=0.1), model_path=model_path, seed=0
    )
    before = trainer.log_probs(batch)[batch.loss_mask].mean()
    metrics = trainer.step(batch)
    assert metrics["actor/positive_nll_loss"] == pytest.approx(-before, rel=1e-4)
    assert trainer.log_probs(batch)[batch.loss_mask].mean() > before + 0.01
