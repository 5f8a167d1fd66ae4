"""The critic goes forward once in a step of one update, where there is room to keep what it computed; same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_samples import random_batch

from rlserve.errors import NonFiniteLossError
from rlserve.trainers import PPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.backends.pytorch.head import OutputHead
from rlserve.trainers.trainer import ElasticTrainer

NUM_SHARDS = 2
MUCH, LITTLE = 16384, 100
"""Tokens that may go through a network at once: of the batch's 12 samples of at most 24 all, or any shard."""


class Counted:
    """A trainer, and how often its critic went forward."""

    def __init__(self, model_path: str, max_tokens: int, **algorithm: Any) -> None:
        config = TorchTrainerConfig(
            learning_rate=1e-3,
            critic_learning_rate=1e-2,
            num_logical_shards=NUM_SHARDS,
            ppo_max_token_len_per_gpu=max_tokens,
        )
        trainer = create_trainer(config, PPOConfig(**algorithm), model_path=model_path, seed=0)
        assert isinstance(trainer, ElasticTrainer)
        self.trainer, self.num_passes = trainer, 0
        trainer._backend._held_state().critic.value_head.register_forward_hook(self._count)  # type: ignore[attr-defined]

    def _count(self, *_: Any) -> None:
        self.num_passes += 1

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.trainer.state().items()}


def assert_same_bits(one: Counted, other: Counted) -> None:
    states = one.state(), other.state()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def test_one_pass_where_there_is_room_and_two_where_there_is_not(model_path: str) -> None:
    kept, not_kept = Counted(model_path, MUCH), Counted(model_path, LITTLE)
    for step in (1, 2):
        batch = random_batch(step)
        assert kept.trainer.step(batch) == not_kept.trainer.step(batch)
        assert (kept.num_passes, not_kept.num_passes) == (step * NUM_SHARDS, 2 * step * NUM_SHARDS)
    assert_same_bits(kept, not_kept)


def test_several_updates_are_of_other_samples_or_another_critic(model_path: str) -> None:
    trainer = Counted(model_path, MUCH, num_epochs=2)
    trainer.trainer.step(random_batch(0))
    assert trainer.num_passes == 3 * NUM_SHARDS


def test_a_step_that_was_broken_off_leaves_nothing_to_the_next(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = Counted(model_path, MUCH), Counted(model_path, MUCH)

    def fail(*_: Any, **__: Any) -> None:
        raise NonFiniteLossError("as if")

    with monkeypatch.context() as patch:
        patch.setattr(OutputHead, "backward", fail)
        with pytest.raises(NonFiniteLossError):
            broken.trainer.step(random_batch(0))
    for each in (broken, whole):
        each.trainer.step(random_batch(1))
    assert_same_bits(broken, whole)
    assert broken.num_passes == 2 * NUM_SHARDS


def test_values_that_are_asked_for_alone_are_not_kept(model_path: str) -> None:
    trainer = Counted(model_path, MUCH)
    batch = random_batch(0)
    trainer.trainer.values(batch)
    trainer.trainer.step(batch)
    assert trainer.num_passes == 2 * NUM_SHARDS
