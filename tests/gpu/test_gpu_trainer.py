"""The trainer on a GPU against itself on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_samples import random_batch, save_tiny_model

from rlserve.errors import NonFiniteLossError
from rlserve.trainers import PPOConfig, TorchTrainerConfig, Trainer, create_trainer

pytestmark = pytest.mark.gpu


def make_trainer(path: str, device: str, algorithm: PPOConfig | None = None, **config: Any) -> Trainer:
    return create_trainer(
        TorchTrainerConfig(num_logical_shards=3, **config),
        algorithm or PPOConfig(kl_coefficient=0.1),
        model_path=path,
        seed=0,
        device=device,
    )


def test_a_step_gives_the_metrics_and_weights_of_the_cpu(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    on_cpu, on_gpu = (make_trainer(path, device) for device in ("cpu", "cuda"))
    batch = random_batch(0)
    expected, found = on_cpu.step(batch), on_gpu.step(batch)
    for name in ("actor/pg_loss", "critic/vf_loss", "actor/entropy", "actor/grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    for name, tensor in on_cpu.weights().items():
        torch.testing.assert_close(on_gpu.weights()[name].cpu(), tensor, atol=1e-5, rtol=1e-3)


def policy_gradient(trainer: Trainer) -> torch.Tensor:
    """The policy's gradient in the only step so far, clipped, from AdamW's first moments."""
    moments = {name: tensor for name, tensor in trainer.state().items() if name.startswith("first_moment.policy.")}
    return torch.cat([moments[name].flatten() for name in sorted(moments)])


def test_fused_layers_in_bfloat16_are_as_near_to_float32_as_those_of_transformers(tmp_path: Path) -> None:
    """Metrics within a twentieth of the unfused ones; the gradient's error at most a quarter larger than theirs."""
    path, batch = save_tiny_model(tmp_path, hidden_size=256, initializer_range=0.05), random_batch(0, num_samples=24)
    exact = make_trainer(path, "cuda", kernels="torch")
    plain, fused = (make_trainer(path, "cuda", dtype="bfloat16", kernels=kernels) for kernels in ("torch", "triton"))
    exact.step(batch)
    expected, found = plain.step(batch), fused.step(batch)
    for name in ("actor/pg_loss", "critic/vf_loss", "actor/entropy", "actor/grad_norm", "critic/grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=5e-2, abs=1e-3), name
    gradient = policy_gradient(exact)
    of_plain, of_fused = (float((policy_gradient(trainer) - gradient).norm()) for trainer in (plain, fused))
    assert 0 < of_fused < 1.25 * of_plain


@pytest.mark.parametrize("max_tokens", [16384, 60], ids=["one pass a shard", "several"])
def test_fused_layers_give_the_same_bits_again(tmp_path: Path, max_tokens: int) -> None:
    path = save_tiny_model(tmp_path, hidden_size=256)
    states = []
    for _ in range(2):
        settings = {"dtype": "bfloat16", "kernels": "triton", "ppo_max_token_len_per_gpu": max_tokens}
        trainer = make_trainer(path, "cuda", learning_rate=1e-4, **settings)
        for seed in range(2):
            trainer.step(random_batch(seed, num_samples=24))
        states.append(trainer.state())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_moments_in_host_memory_give_the_same_bits_and_leave_the_gpu(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, hidden_size=512)
    held_bytes, states = [], []
    for is_offloaded in (False, True):
        before = torch.cuda.memory_allocated()
        trainer = make_trainer(path, "cuda", learning_rate=1e-4, weight_decay=0.1, offload_optimizer=is_offloaded)
        for seed in range(2):
            trainer.step(random_batch(seed))
        held_bytes.append(torch.cuda.memory_allocated() - before)
        trainer.sleep(offload=True)
        trainer.wake()
        trainer.step(random_batch(2))
        states.append({name: tensor.cpu() for name, tensor in trainer.state().items()})
        trainer.leave()
    num_bytes = sum(tensor.nbytes for name, tensor in states[0].items() if "_moment." in name)
    assert held_bytes[0] - held_bytes[1] >= num_bytes
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_recomputed_layers_give_the_same_bits(tmp_path: Path) -> None:
    path, states = save_tiny_model(tmp_path, hidden_size=256), []
    for is_checkpointed in (False, True):
        trainer = make_trainer(path, "cuda", dtype="bfloat16", activation_checkpointing=is_checkpointed)
        trainer.step(random_batch(0, num_samples=24))
        states.append(trainer.state())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_full_sharding_on_one_gpu_has_the_losses_of_optimizer_sharding(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, hidden_size=256)
    whole, sharded = (
        make_trainer(path, "cuda", kernels="torch", dtype="bfloat16", sharding=sharding, offload_optimizer=True)
        for sharding in ("optimizer", "full")
    )
    for seed in range(2):
        expected, found = (trainer.step(random_batch(seed, num_samples=24)) for trainer in (whole, sharded))
        for name in ("actor/pg_loss", "critic/vf_loss", "actor/entropy", "actor/grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=5e-2, abs=1e-3), name
    sharded.sleep(offload=True)
    sharded.wake()
    assert whole.weights().keys() == sharded.weights().keys()
    sharded.step(random_batch(2, num_samples=24))


def test_a_step_taken_back_leaves_no_trace(tmp_path: Path) -> None:
    """The second update overflows."""
    trainer = make_trainer(save_tiny_model(tmp_path), "cuda", PPOConfig(num_epochs=2), learning_rate=1e38)
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    with pytest.raises(NonFiniteLossError):
        trainer.step(random_batch(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state().items())


def test_a_trainer_that_leaves_frees_its_memory(tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated()
    trainer = make_trainer(save_tiny_model(tmp_path, hidden_size=512), "cuda")
    trainer.step(random_batch(0))
    assert torch.cuda.memory_allocated() > before + 2**20
    trainer.leave()
    assert torch.cuda.memory_allocated() < before + 2**20
