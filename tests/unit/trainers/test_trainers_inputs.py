"""What a step makes of inputs that are odd: not finite, all alike, cut, too narrow."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_samples import random_batch, save_tiny_model

from rlserve.errors import NonFiniteLossError
from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, Trainer, create_trainer


def make_trainer(model_path: str, **algorithm: object) -> Trainer:
    config = TorchTrainerConfig(learning_rate=1e-3, critic_learning_rate=1e-2, num_logical_shards=3)
    return create_trainer(config, PPOConfig(**algorithm), model_path=model_path, seed=0)


def with_odd_number(batch: Batch, field: str, sample: int, number: float) -> Batch:
    values = getattr(batch, field).copy()
    values[sample if field == "rewards" else batch.response_lengths[:sample].sum()] = number
    return dataclasses.replace(batch, **{field: values})


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("behaviour_log_probs", np.inf),
        ("behaviour_log_probs", -np.inf),
        ("log_probs", np.nan),
        ("log_probs", -np.inf),
        ("rewards", np.nan),
    ],
)
def test_a_sample_that_is_not_finite_is_left_out_counted_and_named(
    model_path: str, field: str, number: float, caplog: pytest.LogCaptureFixture
) -> None:
    batch = random_batch(0)
    others = batch.select(np.delete(np.arange(12), 4))
    trainer, same = make_trainer(model_path, kl_coefficient=0.1), make_trainer(model_path, kl_coefficient=0.1)
    with caplog.at_level(logging.WARNING):
        found = trainer.step(with_odd_number(batch, field, 4, number))
    assert found.pop("training/num_nonfinite_samples") == 1.0
    expected = same.step(others)
    assert expected.pop("training/num_nonfinite_samples") == 0.0
    assert found == expected
    assert all(np.isfinite(value) for value in found.values())
    assert all(torch.equal(tensor, same.state()[name]) for name, tensor in trainer.state().items())
    assert "not finite in 1 of 12 samples, such as 0-4; they are left out" in caplog.text


def test_a_batch_without_one_finite_sample_is_refused(model_path: str) -> None:
    trainer, batch = make_trainer(model_path), random_batch(0)
    batch = dataclasses.replace(batch, log_probs=np.full_like(batch.log_probs, np.nan))
    with pytest.raises(NonFiniteLossError, match=r"step 1: .* not finite in 12 of 12 samples, such as 0-0; nothing"):
        trainer.step(batch)
    assert trainer.num_steps == 0


def test_a_selected_batch_has_what_the_samples_had() -> None:
    batch = random_batch(2)
    chosen = batch.select(np.array([1, 5, 6]))
    ends = np.cumsum(batch.prompt_lengths + batch.response_lengths)
    tokens = [batch.token_ids[ends[index - 1] : ends[index]] for index in (1, 5, 6)]
    assert np.array_equal(chosen.token_ids, np.concatenate(tokens))
    assert chosen.sample_ids == ("2-1", "2-5", "2-6")
    assert np.array_equal(chosen.rewards, batch.rewards[[1, 5, 6]])
    response_ends = np.cumsum(batch.response_lengths)
    log_probs = [batch.log_probs[response_ends[index - 1] : response_ends[index]] for index in (1, 5, 6)]
    assert np.array_equal(chosen.log_probs, np.concatenate(log_probs))


def test_metrics_stay_finite_where_an_engine_says_more_than_probability_1(model_path: str) -> None:
    batch = with_odd_number(random_batch(0), "log_probs", 3, 1000.0)
    assert all(np.isfinite(value) for value in make_trainer(model_path).step(batch).values())


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_leave_the_policy_as_it_is(model_path: str, reward: float) -> None:
    batch = random_batch(0)
    alike = dataclasses.replace(batch, rewards=np.full_like(batch.rewards, reward))
    informative = make_trainer(model_path).step(batch)["actor/grad_norm"]
    assert make_trainer(model_path).step(alike)["actor/grad_norm"] < 1e-3 * informative
    assert make_trainer(model_path, bound_whitening=False).step(alike)["actor/grad_norm"] > 0.3 * informative


def test_an_answer_that_was_cut_is_worth_what_the_critic_says_of_its_end(model_path: str) -> None:
    batch = dataclasses.replace(random_batch(0), finish_reasons=("length", "stop", "stop") * 4)
    ends = np.cumsum(batch.response_lengths) - 1
    means = []
    for bootstrap in (False, True):
        # With lambda 1 and no discount the return of a token is the reward, and the value of the end where it counts.
        trainer = make_trainer(model_path, bootstrap_truncated=bootstrap, gae_lambda=1.0)
        trainer.step(random_batch(1))
        longer = longer_by_a_token(batch)
        of_ends = trainer.values(longer)[np.cumsum(longer.response_lengths) - 1]
        means.append(trainer.step(batch)["critic/returns/mean"])
    expected = (batch.is_truncated * of_ends * batch.response_lengths).sum() / (ends[-1] + 1)
    assert abs(expected) > 1e-3
    assert means[1] - means[0] == pytest.approx(expected, abs=1e-5)


def longer_by_a_token(batch: Batch) -> Batch:
    """Every sample with one more token, whose state before it is the one after the last of ``batch``."""
    token_ends = np.cumsum(batch.prompt_lengths + batch.response_lengths)
    response_ends = np.cumsum(batch.response_lengths)
    fields = {
        name: np.insert(getattr(batch, name), response_ends, 0)
        for name in ("log_probs", "behaviour_log_probs", "weight_versions")
    }
    return dataclasses.replace(
        batch,
        response_lengths=batch.response_lengths + 1,
        loss_mask=np.ones(len(batch.loss_mask) + batch.num_samples, dtype=bool),
        token_ids=np.insert(batch.token_ids, token_ends, 0),
        **fields,
    )


def test_experts_of_any_size_are_trained(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "qwen3_moe", moe_intermediate_size=33)
    trainer = make_trainer(path)
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    trainer.step(random_batch(0))
    name = "model.layers.0.mlp.experts.1.down_proj.weight"
    assert not torch.equal(trainer.weights()[name], before[name])
