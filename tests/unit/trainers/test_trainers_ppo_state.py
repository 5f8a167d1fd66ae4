"""The state of the PPO trainer: saved, restored, and as it was after a step that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_trainers import assert_same_bits, copy_of, make_trainer
from safetensors.torch import load_file
from trainer_samples import random_batch

from rlserve.errors import NonFiniteLossError, UserError, WeightsRefusedError, WorkerFailedError
from rlserve.trainers import Membership, PPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.backends.pytorch.head import OutputHead


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
def test_state_restores_bit_for_bit(model_path: str, kl_coefficient: float) -> None:
    algorithm = PPOConfig(kl_coefficient=kl_coefficient, num_mini_batches=2)
    trainer = make_trainer(model_path, algorithm)
    trainer.step(random_batch(0))
    saved = copy_of(trainer.state())
    trainer.step(random_batch(1))
    restored = create_trainer(
        TorchTrainerConfig(learning_rate=1e-3, critic_learning_rate=1e-2, num_logical_shards=5),
        algorithm,
        model_path=model_path,
        seed=0,
        load_weights=False,
    )
    restored.load_state(saved)
    assert restored.num_steps == 1
    assert_same_bits(restored.state(), saved)
    restored.step(random_batch(1))
    assert_same_bits(restored.state(), trainer.state())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(model_path: str) -> None:
    trainer = make_trainer(model_path)
    before, odd = copy_of(trainer.state()), copy_of(trainer.state())
    odd["policy.model.norm.weight"] = torch.zeros(3)
    with pytest.raises(WeightsRefusedError, match=r"policy\.model\.norm\.weight"):
        trainer.load_state(odd)
    del odd["policy.model.norm.weight"]
    with pytest.raises(WeightsRefusedError, match=r"lacks tensor 'policy\.model\.norm\.weight'"):
        trainer.load_state(odd)
    assert_same_bits(trainer.state(), before)


@pytest.mark.parametrize("by", ["the next group", "the next step"])
def test_a_step_that_broke_off_between_two_updates_is_taken_back(
    model_path: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    algorithm = PPOConfig(num_epochs=2, num_mini_batches=2)
    trainer, other = make_trainer(model_path, algorithm), make_trainer(model_path, algorithm)
    for each in (trainer, other):
        each.step(random_batch(0))
    before = copy_of(trainer.state())
    updates = iter(range(3))
    backend: Any = trainer
    apply = backend._backend.update

    def update() -> None:
        if next(updates) == 2:
            raise WorkerFailedError("all-gather failed")
        apply()

    monkeypatch.setattr(backend._backend, "update", update)
    with pytest.raises(WorkerFailedError):
        trainer.step(random_batch(1))
    assert not torch.equal(trainer.state()["policy.model.norm.weight"], before["policy.model.norm.weight"])
    monkeypatch.setattr(backend._backend, "update", apply)
    if by == "the next group":
        trainer.resize(Membership(rank=0, num_ranks=1, host="", port=0, secret="", generation=2))
        assert_same_bits(trainer.state(), before)
    trainer.step(random_batch(1))
    other.step(random_batch(1))
    assert_same_bits(trainer.state(), other.state())


def test_a_copied_state_is_written_after_the_next_step_as_what_safetensors_reads(
    model_path: str, tmp_path: Path
) -> None:
    trainer = make_trainer(model_path, PPOConfig(kl_coefficient=0.1))
    trainer.step(random_batch(0))
    saved = copy_of(trainer.state())
    copied = trainer.copy_state()
    trainer.step(random_batch(1))
    copied.write(tmp_path / "trainer", policy_folder=tmp_path / "policy")
    written = load_file(tmp_path / "trainer" / "state-00001-of-00001.safetensors")
    assert_same_bits({name: tensor.view(saved[name].shape) for name, tensor in written.items()}, saved)
    policy = load_file(tmp_path / "policy" / "model.safetensors")
    assert_same_bits(
        {f"policy.{name}": tensor for name, tensor in policy.items()},
        {name: tensor for name, tensor in saved.items() if name.startswith("policy.")},
    )
    trainer.load_files(tmp_path / "trainer")
    assert_same_bits(trainer.state(), saved)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        copied.write(tmp_path / "file" / "trainer", policy_folder=tmp_path / "policy")


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(model_path: str, num_epochs: int) -> None:
    trainer = make_trainer(model_path, PPOConfig(num_epochs=num_epochs))
    trainer.step(random_batch(0))
    trainer.weights()["model.norm.weight"][0] = np.inf
    before = copy_of(trainer.state())
    with pytest.raises(NonFiniteLossError, match=r"step 2 is not finite and was not applied: .*pg_loss nan"):
        trainer.step(random_batch(1))
    assert_same_bits(trainer.state(), before)
    assert trainer.num_steps == 1


def test_a_gradient_that_overflows_in_the_second_update_takes_the_first_one_back(model_path: str) -> None:
    trainer = make_trainer(model_path, PPOConfig(num_epochs=2), learning_rate=1e38)
    before = copy_of(trainer.state())
    with pytest.raises(NonFiniteLossError):
        trainer.step(random_batch(0))
    assert_same_bits(trainer.state(), before)


@pytest.mark.parametrize(
    "found",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: ..."),
    ],
    ids=["gpu", "cpu"],
)
def test_running_out_of_memory_names_what_to_lower(
    model_path: str, monkeypatch: pytest.MonkeyPatch, found: Exception
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise found

    trainer = make_trainer(model_path, ppo_max_token_len_per_gpu=4000)
    before = copy_of(trainer.state())
    monkeypatch.setattr(OutputHead, "backward", fail)
    with pytest.raises(UserError, match=r"memory in step 1 .*lower trainer\.ppo_max_token_len_per_gpu.*\(now 4000\)"):
        trainer.step(random_batch(0))
    assert_same_bits(trainer.state(), before)
