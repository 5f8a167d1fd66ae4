"""GRPO against its equations written out in NumPy, and whole steps of it without a critic."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_samples import random_batch, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.errors import UserError
from rlserve.trainers import (
    Batch,
    GRPOConfig,
    PPOConfig,
    RolloutCorrectionConfig,
    TorchTrainerConfig,
    Trainer,
    create_trainer,
)
from rlserve.trainers.algorithms.advantages.groups import group_advantages
from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.grpo import GRPO


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), initializer_range=0.05)


def make_trainer(model_path: str, algorithm: GRPOConfig | None = None, **config: Any) -> Trainer:
    fields = {"learning_rate": 1e-3, "num_logical_shards": 5, **config}
    return create_trainer(TorchTrainerConfig(**fields), algorithm or GRPOConfig(), model_path=model_path, seed=0)


@settings(max_examples=100, deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=20),
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_compare_a_sample_with_its_group(samples: list[tuple[int, int]], scale: Any) -> None:
    groups = np.array([group for group, _ in samples], dtype=np.int32)
    rewards = np.array([reward for _, reward in samples], dtype=np.float32)
    found = group_advantages(rewards.astype(np.float64), groups, scale)
    for sample, (group, reward) in enumerate(samples):
        of_group = rewards[groups == group].astype(np.float64)
        expected = reward - of_group.mean()
        scaled_by = {"group": of_group, "batch": rewards.astype(np.float64), "none": np.zeros(0)}[scale]
        if len(scaled_by) > 1:
            expected /= scaled_by.std(ddof=1) + 1e-6
        assert found[sample] == pytest.approx(expected, abs=1e-9)


def test_a_lone_sample_and_equal_rewards_teach_nothing() -> None:
    found = group_advantages(np.array([0.1, 0.1, 0.1, 7.0]), np.array([4, 4, 4, 1], dtype=np.int32), "group")
    np.testing.assert_allclose(found, 0.0, atol=1e-9)


def plain_loss(
    config: GRPOConfig, new: np.ndarray, old: np.ndarray, behaviour: np.ndarray, reference: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    """Equations 3 and 4 for single tokens, times the truncated importance weight of the surrogate."""
    ratio = np.exp(new - old)
    surrogate = np.minimum(ratio * gain, np.clip(ratio, 1 - config.clip_ratio_low, 1 + config.clip_ratio_high) * gain)
    weight = np.minimum(np.exp(old - behaviour), config.rollout_correction.rollout_is_threshold)
    divergence = np.exp(reference) / np.exp(new) - np.log(np.exp(reference) / np.exp(new)) - 1
    return -weight * surrogate + config.kl_loss_coefficient * divergence


def test_the_loss_and_its_gradient_are_those_of_the_equations() -> None:
    config = GRPOConfig(kl_loss_coefficient=0.3, rollout_correction=RolloutCorrectionConfig(rollout_is_threshold=1.1))
    rng = np.random.default_rng(0)
    new, old, behaviour, reference = (-rng.uniform(0.1, 1.5, 200) for _ in range(4))
    gain = rng.normal(size=200)
    log_probs = torch.tensor(new, requires_grad=True)
    loss = GRPO(config).policy_loss(
        PolicyTokens(
            log_probs=log_probs,
            old_log_probs=torch.tensor(old),
            behaviour_log_probs=torch.tensor(behaviour),
            reference_log_probs=torch.tensor(reference),
            advantages=torch.tensor(gain),
            entropies=None,
            samples=torch.zeros(200, dtype=torch.int64),
            is_selected=None,
        )
    )
    loss.per_token.sum().backward()
    expected = plain_loss(config, new, old, behaviour, reference, gain)
    np.testing.assert_allclose(loss.per_token.detach(), expected, atol=1e-12)
    step = 1e-6
    slope = (
        plain_loss(config, new + step, old, behaviour, reference, gain)
        - plain_loss(config, new - step, old, behaviour, reference, gain)
    ) / (2 * step)
    np.testing.assert_allclose(log_probs.grad, slope, atol=1e-7)
    assert 0.1 < float(loss.means["actor/pg_clipfrac"].double().mean()) < 0.9


def plain_gradient(model_path: str, weights: dict[str, torch.Tensor], config: GRPOConfig, batch: Batch) -> torch.Tensor:
    """The first update's, written out: float64, one answer at a time, the mean of each answer's mean."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval() for _ in range(2))
    policy.load_state_dict(weights, strict=False)
    losses = []
    token_start = response_start = 0
    for index, (prompt, response) in enumerate(zip(batch.prompt_lengths, batch.response_lengths, strict=True)):
        tokens = torch.from_numpy(batch.token_ids[token_start : token_start + prompt + response].astype(np.int64))
        behaviour = torch.from_numpy(batch.behaviour_log_probs[response_start : response_start + response]).double()
        token_start, response_start = token_start + prompt + response, response_start + response
        new, kept = (
            model(tokens[None]).logits[0, prompt - 1 : -1].log_softmax(-1).gather(-1, tokens[prompt:, None])[:, 0]
            for model in (policy, reference)
        )
        of_group = [
            reward
            for reward, group in zip(batch.rewards.tolist(), batch.group_ids, strict=True)
            if group == batch.group_ids[index]
        ]
        gain = (float(batch.rewards[index]) - np.mean(of_group)) / (np.std(of_group, ddof=1) + 1e-6)
        weight = (new.detach() - behaviour).exp().clamp(max=config.rollout_correction.rollout_is_threshold)
        divergence = (kept - new).exp() - (kept - new) - 1
        loss = -weight * (new - new.detach()).exp() * gain + config.kl_loss_coefficient * divergence
        losses.append(loss.mean())
    torch.stack(losses).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


@pytest.mark.parametrize("kl_loss_coefficient", [0.0, 0.5])
def test_a_step_follows_the_gradient_of_the_equations(model_path: str, kl_loss_coefficient: float) -> None:
    config = GRPOConfig(kl_loss_coefficient=kl_loss_coefficient)
    # With beta1 = 0 the first moment is the gradient itself, and nothing is clipped.
    trainer = make_trainer(model_path, config, adam_beta1=0.0, max_grad_norm=1e9)
    trainer.step(random_batch(3))  # moves the policy away from the reference
    batch = random_batch(4)
    expected = plain_gradient(model_path, trainer.weights(), config, batch)
    metrics = trainer.step(batch)
    state = trainer.state()
    ours = torch.cat([state[f"first_moment.policy.{name}"].flatten() for name in trainer.weights()])
    assert float((ours.double() - expected).norm() / expected.norm()) < 1e-6
    assert ("actor/kl_loss" in metrics) == (kl_loss_coefficient > 0)
    if kl_loss_coefficient > 0:
        # The step's only update sees the policy of its start; only the weights of tokens differ.
        assert metrics["actor/kl_loss"] == pytest.approx(metrics["critic/kl_k3"], rel=0.5)
        assert metrics["actor/kl_loss"] > 0.0
    else:
        assert "critic/kl" not in metrics


def test_there_is_no_critic_anywhere(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("a pass of a critic")

    monkeypatch.setattr("rlserve.trainers.backends.pytorch.backward.response_values", refuse)
    monkeypatch.setattr("rlserve.trainers.backends.pytorch.scoring.response_values", refuse)
    monkeypatch.setattr("rlserve.trainers.backends.pytorch.state.create_critic", refuse)
    trainer = make_trainer(model_path)
    metrics = trainer.step(random_batch(0))
    assert not [name for name in trainer.state() if "critic" in name]
    of_critic = ("critic/returns", "critic/values", "critic/vf_", "critic/grad_norm", "critic/lr")
    assert not [name for name in metrics if name.startswith(of_critic)]
    assert {"critic/score/mean", "critic/rewards/mean", "critic/advantages/max", "actor/pg_loss"} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())
    with pytest.raises(UserError, match="GRPO trains no critic"):
        trainer.values(random_batch(0))


def test_it_holds_half_of_what_ppo_holds(model_path: str) -> None:
    sizes = [
        sum(
            tensor.numel()
            for tensor in create_trainer(TorchTrainerConfig(), algorithm, model_path=model_path, seed=0)
            .state()
            .values()
        )
        for algorithm in (GRPOConfig(), PPOConfig())
    ]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.01)


def test_state_restores_bit_for_bit(model_path: str) -> None:
    config = GRPOConfig(num_mini_batches=2, kl_loss_coefficient=0.1)
    trainer, restored = make_trainer(model_path, config), make_trainer(model_path, config)
    trainer.step(random_batch(0))
    restored.load_state({name: tensor.clone() for name, tensor in trainer.state().items()})
    for either in (trainer, restored):
        either.step(random_batch(1))
    left, right = trainer.state(), restored.state()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_equal_rewards_leave_the_policy_as_it_is(model_path: str) -> None:
    batch = random_batch(0)
    alike = dataclasses.replace(batch, rewards=np.full_like(batch.rewards, 0.3))
    assert make_trainer(model_path).step(alike)["actor/grad_norm"] == pytest.approx(0.0, abs=1e-6)
    assert make_trainer(model_path).step(batch)["actor/grad_norm"] > 0.01
