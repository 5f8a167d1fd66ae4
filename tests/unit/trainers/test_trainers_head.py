"""The output head in chunks: the same numbers and gradients, in less memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_samples import VOCABULARY, random_batch, save_tiny_model

from rlserve.trainers import PPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.backends.base import PolicyOutputs
from rlserve.trainers.backends.pytorch import head
from rlserve.trainers.backends.pytorch.head import OutputHead
from rlserve.trainers.backends.pytorch.models import load_policy

NUM_ROWS = 23


class MostLogits(TorchDispatchMode):
    """The most rows as wide as the vocabulary that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rows = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(each, Tensor) and each.shape[-1:] == (VOCABULARY,):
                self.num_rows = max(self.num_rows, each.numel() // VOCABULARY)
        return found


@pytest.fixture(params=["qwen3", "gemma2"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return load_policy(save_tiny_model(tmp_path, request.param, hidden_size=16), load_weights=True)


def states_and_targets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(NUM_ROWS, 16, generator=generator)
    return states.requires_grad_(), torch.randint(VOCABULARY, (NUM_ROWS,), generator=generator)


def weighted(rows: slice, outputs: PolicyOutputs) -> Tensor:
    weights = torch.linspace(-1.0, 1.0, NUM_ROWS)[rows]
    loss = (weights * outputs.log_probs).sum()
    return loss if outputs.entropies is None else loss + (weights.square() * outputs.entropies).sum()


def plain(policy: Any, states: Tensor, targets: Tensor, temperature: float) -> PolicyOutputs:
    logits = policy.lm_head(states)
    if cap := getattr(policy.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    distribution = (logits / temperature).log_softmax(-1)
    return PolicyOutputs(
        log_probs=distribution.gather(-1, targets[:, None])[:, 0],
        raw_log_probs=logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0],
        entropies=-(distribution.exp() * distribution).sum(-1),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("num_chunk_elements", [1, 20 * VOCABULARY, 2**22])
def test_values_and_gradients_are_those_of_plain_autograd(
    policy: Any, temperature: float, num_chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", num_chunk_elements)
    monkeypatch.setattr(head, "_CHUNK_ROWS", 4)
    states, targets = states_and_targets()
    found = OutputHead(policy, temperature).backward(states, targets, weighted, with_entropy=True, autocast=nullcontext)
    gradients = states.grad.clone(), policy.lm_head.weight.grad.clone()

    states.grad = policy.lm_head.weight.grad = None
    expected = plain(policy, states, targets, temperature)
    weighted(slice(None), expected).backward()

    for name in ("log_probs", "raw_log_probs", "entropies"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], states.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[1], policy.lm_head.weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
def test_no_step_makes_the_logits_of_all_tokens(
    tmp_path: Path, kl_coefficient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", 1)
    path = save_tiny_model(tmp_path, hidden_size=8)  # nothing else is as wide as the vocabulary
    algorithm = PPOConfig(kl_coefficient=kl_coefficient, entropy_coefficient=kl_coefficient)
    trainer = create_trainer(
        TorchTrainerConfig(num_logical_shards=1, kernels="torch"), algorithm, model_path=path, seed=0, temperature=0.8
    )
    batch = random_batch(0, num_samples=40)
    with MostLogits() as most:
        trainer.step(batch)
        trainer.log_probs(batch)
    assert most.num_rows == 8, "as many as the hidden size"


def test_entropies_are_computed_only_where_the_loss_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, batch = save_tiny_model(tmp_path), random_batch(0)
    asked = []
    whole = OutputHead._outputs

    def outputs(self: OutputHead, states: Tensor, targets: Tensor, *, with_entropy: bool = False) -> PolicyOutputs:
        asked.append(with_entropy)
        return whole(self, states, targets, with_entropy=with_entropy)

    monkeypatch.setattr(OutputHead, "_outputs", outputs)
    found = []
    for coefficient in (0.0, 1e-9):
        trainer = create_trainer(
            TorchTrainerConfig(), PPOConfig(entropy_coefficient=coefficient), model_path=path, seed=0
        )
        log_probs = trainer.log_probs(batch)
        asked.clear()
        found.append(trainer.step(batch)["actor/entropy"])
        assert set(asked) == {coefficient > 0}
    assert found[0] == pytest.approx(-float(np.mean(log_probs)), abs=1e-5), "the estimate from what was sampled"
    assert found[1] != pytest.approx(found[0], abs=1e-3)


def test_chunks_cover_the_rows_and_follow_the_models_size(tmp_path: Path) -> None:
    policy = load_policy(save_tiny_model(tmp_path, hidden_size=16), load_weights=True)
    parts = list(OutputHead(policy, 1.0).chunks(300_000))
    assert [part.start for part in parts] == [0, 2**22 // VOCABULARY, 2 * (2**22 // VOCABULARY)]
    assert parts[-1].stop == 300_000
