"""Whole steps of the PPO trainer on one rank."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ppo_trainers import assert_same_bits, copy_of, make_trainer
from trainer_samples import VOCABULARY, random_batch
from transformers import AutoModelForCausalLM

from rlserve.errors import UserError
from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, create_trainer


def test_metrics_are_finite_numbers_under_known_names(model_path: str) -> None:
    trainer = make_trainer(model_path, PPOConfig(kl_coefficient=0.1))
    batch = random_batch(0)
    found = trainer.step(batch)
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())
    assert found["critic/score/mean"] == pytest.approx(float(batch.rewards.mean()))
    assert found["response_length/max"] == batch.response_lengths.max()
    assert found["critic/kl"] == found["critic/kl_k3"] == 0.0, "before the first update the policy is the reference"
    assert found["actor/lr"] == 1e-3
    assert found["training/staleness/max"] == 0.0
    names = {"actor/pg_loss", "actor/ppo_kl", "actor/pg_clipfrac", "actor/entropy", "actor/grad_norm"}
    names |= {"critic/vf_loss", "critic/vf_clipfrac", "critic/vf_explained_var", "critic/rewards/mean"}
    names |= {f"critic/{what}/{how}" for what in ("advantages", "returns", "values") for how in ("mean", "max", "min")}
    names |= {"training/rollout_probs_diff_mean", "training/importance_weight_mean", "prompt_length/mean"}
    assert names <= found.keys()


def with_log_probs(batch: Batch, log_probs: np.ndarray, versions: np.ndarray | None = None) -> Batch:
    versions = batch.weight_versions if versions is None else versions
    return dataclasses.replace(batch, log_probs=log_probs, behaviour_log_probs=log_probs, weight_versions=versions)


def test_log_prob_difference_is_measured_on_the_newest_tokens(model_path: str) -> None:
    trainer = make_trainer(model_path)
    trainer.step(random_batch(0))
    batch = random_batch(1)
    is_new = np.arange(batch.num_response_tokens) % 2 == 1
    engine = trainer.log_probs(batch) + np.where(is_new, 0.25, 7.0).astype(np.float32)
    found = trainer.step(with_log_probs(batch, engine, is_new.astype(np.int32)))
    assert found["training/log_prob_diff_mean"] == pytest.approx(0.25, abs=1e-5)
    assert found["training/log_prob_diff_max"] == pytest.approx(0.25, abs=1e-5)
    assert found["training/log_prob_diff_staleness"] == 0.0
    assert found["training/staleness/max"] == 1.0


def test_on_policy_samples_have_importance_weight_1(model_path: str) -> None:
    trainer = make_trainer(model_path)
    batch = random_batch(0)
    found = trainer.step(with_log_probs(batch, trainer.log_probs(batch)))
    assert found["training/importance_weight_mean"] == pytest.approx(1.0, abs=1e-6)
    assert found["training/log_prob_diff_max"] == 0.0


def test_several_epochs_and_mini_batches_make_that_many_updates_and_clip(model_path: str) -> None:
    trainer = make_trainer(model_path, PPOConfig(num_epochs=3, num_mini_batches=2), learning_rate=0.05)
    found = trainer.step(random_batch(0))
    assert trainer.state()["counters"].tolist() == [1, 6]
    assert found["actor/pg_clipfrac"] > 0.0
    assert found["actor/ppo_kl"] != 0.0


def test_the_number_of_logical_shards_changes_the_order_of_sums_only(model_path: str) -> None:
    states = []
    for num_logical_shards in (1, 5, 64):
        trainer = make_trainer(model_path, num_logical_shards=num_logical_shards, adam_beta1=0.0)
        trainer.step(random_batch(0))
        states.append(copy_of(trainer.state()))
    for state in states[1:]:
        for name in (name for name in state if name.startswith("first_moment")):
            torch.testing.assert_close(state[name], states[0][name], rtol=1e-4, atol=1e-6)


def test_a_limit_of_tokens_changes_the_order_of_sums_only_and_none_where_it_is_not_met(model_path: str) -> None:
    algorithm = PPOConfig(kl_coefficient=0.1, entropy_coefficient=0.1)
    limits = (16384, 300, 1)
    states = []
    for limit in limits:
        trainer = make_trainer(
            model_path, algorithm, num_logical_shards=1, ppo_max_token_len_per_gpu=limit, adam_beta1=0.0
        )
        trainer.step(random_batch(0))
        states.append(copy_of(trainer.state()))
    assert_same_bits(states[1], states[0])  # 12 samples of at most 24 tokens
    moments = [name for name in states[0] if name.startswith("first_moment")]
    assert not all(torch.equal(states[2][name], states[0][name]) for name in moments)
    for name in moments:
        torch.testing.assert_close(states[2][name], states[0][name], rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_near_float32_and_keeps_float32_weights(model_path: str) -> None:
    exact, rounded = make_trainer(model_path), make_trainer(model_path, dtype="bfloat16")
    batch = random_batch(0)
    difference = np.abs(exact.log_probs(batch) - rounded.log_probs(batch))
    assert 0 < difference.mean() < 0.1
    rounded.step(batch)
    assert {tensor.dtype for tensor in rounded.weights().values()} == {torch.float32}


def test_the_last_metrics_are_kept(model_path: str) -> None:
    trainer = make_trainer(model_path)
    assert trainer.last_metrics == {}
    found = trainer.step(random_batch(0))
    assert trainer.last_metrics == found


def test_training_raises_the_reward_for_a_token(model_path: str) -> None:
    """The trainer as a library: sample from its weights, reward one token, step."""
    wanted, num_samples, length = 5, 32, 6
    trainer = make_trainer(model_path, learning_rate=1e-2)
    policy = AutoModelForCausalLM.from_pretrained(model_path)
    generator = torch.Generator().manual_seed(0)
    scores = []
    for step in range(25):
        policy.load_state_dict(trainer.weights(), strict=False)
        policy.tie_weights()
        tokens = torch.randint(VOCABULARY, (num_samples, 2), generator=generator)
        log_probs = []
        for _ in range(length):
            with torch.no_grad():
                distribution = policy(tokens).logits[:, -1].log_softmax(-1)
            chosen = torch.multinomial(distribution.exp(), 1, generator=generator)
            log_probs.append(distribution.gather(-1, chosen))
            tokens = torch.cat([tokens, chosen], dim=1)
        behaviour = torch.cat(log_probs, dim=1).flatten().numpy()
        batch = Batch(
            sample_ids=tuple(f"{step}-{index}" for index in range(num_samples)),
            group_ids=tuple(str(index) for index in range(num_samples)),
            prompt_lengths=np.full(num_samples, 2, dtype=np.int32),
            response_lengths=np.full(num_samples, length, dtype=np.int32),
            token_ids=tokens.flatten().numpy().astype(np.int32),
            loss_mask=np.ones(num_samples * length, dtype=bool),
            log_probs=behaviour,
            behaviour_log_probs=behaviour,
            weight_versions=np.full(num_samples * length, step, dtype=np.int32),
            rewards=(tokens[:, 2:] == wanted).float().mean(dim=1).numpy(),
            finish_reasons=("length",) * num_samples,
        )
        found = trainer.step(batch)
        scores.append(found["critic/score/mean"])
        assert found["training/log_prob_diff_max"] < 1e-4
    assert scores[0] < 0.2
    assert scores[-1] > 0.8


def test_a_gpu_that_is_not_there_is_refused(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda, but torch sees no GPU here"):
        create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=model_path, seed=0, device="cuda")


def test_a_trainer_told_to_stay_on_the_cpu_leaves_the_gpus_alone(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=model_path, seed=0, device="cpu")
    assert {tensor.device.type for tensor in trainer.weights().values()} == {"cpu"}
