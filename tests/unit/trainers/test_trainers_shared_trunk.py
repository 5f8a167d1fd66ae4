"""A critic that is a head on the policy: the gradient of the joint loss, how often the trunk is computed, its state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_ppo import PlainPPO
from ppo_trainers import assert_same_bits, copy_of, make_trainer
from trainer_samples import random_batch, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.errors import ConfigurationError, NonFiniteLossError, UserError, WeightsRefusedError
from rlserve.trainers import GRPOConfig, LoraConfig, PPOConfig, TorchTrainerConfig, Trainer, create_trainer
from rlserve.trainers.backends.pytorch.head import OutputHead

HEAD = {"critic.value_head.weight", "critic.value_head.bias"}
NUM_SHARDS = 2
MUCH, LITTLE = 16384, 100
"""Tokens that may go through a network at once: of the batch's 12 samples of at most 24 all, or any shard."""


def shared(model_path: str, algorithm: PPOConfig | None = None, temperature: float = 1.0, **config: Any) -> Trainer:
    return make_trainer(model_path, algorithm, temperature, critic_trunk="shared", **config)


def networks_of(trainer: Any) -> Any:
    return trainer._backend._held_state()


@pytest.mark.parametrize(
    ("algorithm", "temperature", "config"),
    [
        (PPOConfig(), 1.0, {}),
        (PPOConfig(), 1.0, {"ppo_max_token_len_per_gpu": 60}),
        (PPOConfig(), 1.0, {"kernels": "torch"}),
        (PPOConfig(), 1.0, {"sharding": "full"}),
        (PPOConfig(), 1.0, {"deterministic": True}),
        (PPOConfig(kl_coefficient=0.3, entropy_coefficient=0.02, gamma=0.9, gae_lambda=0.8), 1.0, {}),
        (PPOConfig(kl_coefficient=0.1, entropy_coefficient=0.1, value_coefficient=2.0), 0.7, {}),
    ],
    ids=["default", "several-passes", "torch", "full", "deterministic", "kl-entropy", "temperature"],
)
def test_the_gradient_is_that_of_one_loss_on_one_model(
    tmp_path: Path, algorithm: PPOConfig, temperature: float, config: dict[str, Any]
) -> None:
    # Weights of an ordinary size: with the large ones of the other tests, float32 rounding alone comes to 1e-6.
    model_path = save_tiny_model(tmp_path, initializer_range=0.05)
    # With beta1 = 0 the first moment is the gradient itself, and nothing is clipped.
    trainer = shared(model_path, algorithm, temperature, adam_beta1=0.0, max_grad_norm=1e9, **config)
    trainer.step(random_batch(3))  # moves policy and head away from where they began
    batch = random_batch(4)
    expected = PlainPPO(model_path, trainer, algorithm, temperature).gradients(batch)
    metrics = trainer.step(batch)
    state = trainer.state()
    assert {f"first_moment.{name}" for name in expected} == {name for name in state if name.startswith("first_moment.")}
    for network in ("policy.", "critic."):
        names = [name for name in expected if name.startswith(network)]
        ours = torch.cat([state[f"first_moment.{name}"].flatten().double() for name in names])
        plain = torch.cat([expected[name].flatten() for name in names])
        assert float((ours - plain).norm() / plain.norm()) < 1e-6
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected.values()))
    assert metrics["actor/grad_norm"] == metrics["critic/grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_gradient_of_both_is_clipped_as_one(model_path: str) -> None:
    states = []
    for max_norm in (1e9, 1e-3):
        trainer = shared(model_path, adam_beta1=0.0, max_grad_norm=max_norm)
        metrics = trainer.step(random_batch(0))
        states.append({name: each for name, each in trainer.state().items() if name.startswith("first_moment.")})
    scale = 1e-3 / metrics["actor/grad_norm"]
    assert scale < 0.1
    for name, gradient in states[0].items():
        torch.testing.assert_close(states[1][name], gradient * scale, rtol=1e-4, atol=1e-9)


class Counted:
    """How often the last norm of a trunk and its value head are computed."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.num_passes, self.num_values = trainer, 0, 0
        networks = networks_of(trainer)
        decoder = networks.policy.base_model.packed_decoder
        states = decoder.states

        def counted(inputs: Any) -> Any:
            self.num_passes += 1
            return states(inputs)

        decoder.states = counted
        networks.critic.value_head.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.num_values += 1


def test_a_step_of_one_update_goes_through_the_trunk_once_where_there_is_room(model_path: str) -> None:
    algorithm = PPOConfig(kl_coefficient=0.1)  # asks for log-probabilities before credit is given
    kept, not_kept = (
        Counted(shared(model_path, algorithm, num_logical_shards=NUM_SHARDS, ppo_max_token_len_per_gpu=tokens))
        for tokens in (MUCH, LITTLE)
    )
    for step in (1, 2):
        batch = random_batch(step)
        assert kept.trainer.step(batch) == not_kept.trainer.step(batch)
        assert (kept.num_passes, not_kept.num_passes) == (step * NUM_SHARDS, 2 * step * NUM_SHARDS)
        assert kept.num_values == not_kept.num_values == 2 * step * NUM_SHARDS
    assert_same_bits(kept.trainer.state(), not_kept.trainer.state())


def test_a_step_that_was_broken_off_leaves_nothing_to_the_next(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = shared(model_path), shared(model_path)

    def fail(*_: Any, **__: Any) -> None:
        raise NonFiniteLossError("as if")

    with monkeypatch.context() as patch:
        patch.setattr(OutputHead, "backward", fail)
        with pytest.raises(NonFiniteLossError):
            broken.step(random_batch(0))
    for each in (broken, whole):
        each.step(random_batch(1))
    assert_same_bits(broken.state(), whole.state())


@pytest.mark.parametrize("sharding", ["optimizer", "full"])
def test_there_is_one_trunk_and_what_leaves_the_trainer_has_no_value_head(
    model_path: str, tmp_path: Path, sharding: str
) -> None:
    trainer = shared(model_path, PPOConfig(kl_coefficient=0.1), sharding=sharding)
    trainer.step(random_batch(0))
    model = AutoModelForCausalLM.from_pretrained(model_path)
    policy = {name: parameter.numel() for name, parameter in model.named_parameters()}
    state = trainer.state()
    trained = {name: each.numel() for name, each in state.items() if name.startswith(("policy.", "critic."))}
    assert trained.keys() == {f"policy.{name}" for name in policy} | HEAD
    assert sum(trained.values()) == sum(policy.values()) + model.config.hidden_size + 1
    for kind in ("first", "second"):
        assert sum(each.numel() for name, each in state.items() if name.startswith(f"{kind}_moment.")) == sum(
            trained.values()
        )
    assert trainer.weights().keys() == policy.keys()
    copied = trainer.copy_state()
    trainer.save_pretrained(tmp_path / "saved")
    copied.write(tmp_path / "trainer", policy_folder=tmp_path / "written")
    for folder in ("saved", "written"):
        written, report = AutoModelForCausalLM.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(written.base_model.norm.weight, state["policy.model.norm.weight"])
    again = shared(model_path, PPOConfig(kl_coefficient=0.1), sharding=sharding)
    again.load_files(tmp_path / "trainer")
    assert_same_bits(again.state(), state)
    for each in (trainer, again):
        each.step(random_batch(1))
    assert_same_bits(again.state(), trainer.state())


def test_a_state_of_the_other_kind_is_refused(model_path: str) -> None:
    one, other = shared(model_path), make_trainer(model_path)
    with pytest.raises(WeightsRefusedError, match=r"critic\.backbone"):
        one.load_state(copy_of(other.state()))
    with pytest.raises(WeightsRefusedError, match=r"critic\.backbone"):
        other.load_state(copy_of(one.state()))


def test_values_are_those_of_the_head_on_the_policys_states(model_path: str) -> None:
    trainer = shared(model_path, PPOConfig(bootstrap_truncated=True))
    batch = random_batch(0)
    trainer.step(batch)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.load_state_dict(trainer.weights(), strict=False)
    state, expected, first = trainer.state(), [], 0
    for num_prompt, num_response in zip(batch.prompt_lengths, batch.response_lengths, strict=True):
        end = first + num_prompt + num_response
        ids = torch.from_numpy(batch.token_ids[first:end].astype(np.int64))[None]
        with torch.no_grad():
            states = model.base_model(input_ids=ids).last_hidden_state[0, num_prompt - 1 : -1]
            values = states @ state["critic.value_head.weight"][0] + state["critic.value_head.bias"]
        expected.append(values.numpy())
        first = end
    np.testing.assert_allclose(trainer.values(batch), np.concatenate(expected), atol=1e-5)


def test_while_the_critic_warms_up_the_head_alone_learns(model_path: str) -> None:
    trainer = shared(model_path, critic_warmup_steps=2, weight_decay=0.1, critic_head_learning_rate=0.1)
    for step in range(3):
        before = copy_of(trainer.state())
        metrics = trainer.step(random_batch(step))
        assert (metrics["actor/lr"], metrics["critic/head_lr"]) == (1e-3 * (step == 2), 0.1)
        changed = {
            name
            for name, each in trainer.state().items()
            if name.startswith(("policy.", "critic.")) and not torch.equal(each, before[name])
        }
        assert changed == HEAD if step < 2 else changed > HEAD


def test_adapters_and_head_are_trained_over_one_frozen_base(model_path: str) -> None:
    lora = LoraConfig(rank=4, alpha=8.0)
    trainer = shared(model_path, PPOConfig(kl_coefficient=0.1), lora=lora)
    before = copy_of(trainer.state())
    trainer.step(random_batch(0))
    trainer.step(random_batch(1))
    state = trainer.state()
    trained = {name for name in state if name.startswith(("policy.", "critic."))}
    assert {name for name in trained if "lora_" not in name} == HEAD
    assert {name for name in trained if not torch.equal(state[name], before[name])} == trained
    assert all(".lora_" in name for name in trainer.weights())
    values, frozen = trainer.values(random_batch(2)), networks_of(trainer).policy
    assert networks_of(trainer).valuer.backbone is frozen.base_model
    restored = shared(model_path, PPOConfig(kl_coefficient=0.1), lora=lora)
    restored.load_state(copy_of(state))
    np.testing.assert_array_equal(restored.values(random_batch(2)), values)


def test_without_a_critic_nothing_is_shared(model_path: str) -> None:
    config = TorchTrainerConfig(critic_trunk="shared")
    trainer = create_trainer(config, GRPOConfig(), model_path=model_path, seed=0)
    trainer.step(random_batch(0))
    assert not HEAD & trainer.state().keys()
    with pytest.raises(UserError, match="GRPO trains no critic"):
        trainer.values(random_batch(0))


def test_a_reward_model_cannot_be_the_trunk() -> None:
    with pytest.raises(ConfigurationError, match=r"critic_model_path: must be null with critic_trunk=shared.*separate"):
        TorchTrainerConfig(critic_trunk="shared", critic_model_path="reward")
