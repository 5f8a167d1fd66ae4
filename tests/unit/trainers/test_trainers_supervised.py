"""Supervised algorithms against closed forms: losses, masks, gradients, and what a reward model is as a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from trainer_samples import FAMILIES, random_batch, save_tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlserve.errors import UserError
from rlserve.trainers import (
    Batch,
    GRPOConfig,
    LoraConfig,
    RewardModelConfig,
    SFTConfig,
    TorchTrainerConfig,
    Trainer,
    create_trainer,
)
from rlserve.trainers.algorithms.supervised.config import MARGIN

FAR = 1e-6


def make_trainer(model_path: str, algorithm: Any, **config: Any) -> Trainer:
    fields = {"learning_rate": 1e-3, "num_logical_shards": 5, "max_grad_norm": 1e9, **config}
    return create_trainer(TorchTrainerConfig(**fields), algorithm, model_path=model_path, seed=0, device="cpu")


def masked(batch: Batch, seed: int = 3) -> Batch:
    """The batch with some response tokens left out, but never all of a sample."""
    mask = np.random.default_rng(seed).random(len(batch.loss_mask)) < 0.6
    mask[batch.response_starts] = True
    return replace(batch, loss_mask=mask)


def samples_of(batch: Batch) -> list[tuple[NDArray[np.int64], int, NDArray[np.bool_]]]:
    """Token ids, length of the prompt, and which response tokens are trained, sample by sample."""
    ends = np.cumsum(batch.prompt_lengths + batch.response_lengths)
    response_ends = np.cumsum(batch.response_lengths)
    return [
        (
            batch.token_ids[end - prompt - response : end].astype(np.int64),
            int(prompt),
            batch.loss_mask[response_end - response : response_end],
        )
        for end, response_end, prompt, response in zip(
            ends, response_ends, batch.prompt_lengths, batch.response_lengths, strict=True
        )
    ]


def reference_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean negative log-likelihood of all trained tokens, by transformers one sample at a time."""
    losses = []
    for token_ids, num_prompt, is_trained in samples_of(batch):
        logits = model(input_ids=torch.from_numpy(token_ids)[None]).logits[0, num_prompt - 1 : -1].double()
        log_probs = torch.log_softmax(logits, dim=-1)
        targets = torch.from_numpy(token_ids[num_prompt:])
        losses.append(-log_probs.gather(1, targets[:, None])[:, 0][torch.from_numpy(is_trained)])
    return torch.cat(losses).mean()


def gradient_norm(model: Any) -> float:
    """Over all parameters that have a gradient."""
    squares = [parameter.grad.double().square().sum() for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_sft_is_the_mean_negative_log_likelihood_of_the_trained_tokens(model_path: str, kernels: str) -> None:
    batch = masked(random_batch(1))
    trainer = make_trainer(model_path, SFTConfig(), kernels=kernels)
    model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    loss = reference_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    expected = float(loss.detach())
    before = trainer.evaluate(batch)
    assert before["loss"] == pytest.approx(expected, abs=FAR)
    assert before["perplexity"] == pytest.approx(np.exp(expected), rel=1e-5)
    metrics = trainer.step(batch)
    assert metrics["train/loss"] == pytest.approx(expected, abs=FAR)
    assert metrics["actor/grad_norm"] == pytest.approx(gradient_norm(model), rel=1e-4)
    assert trainer.evaluate(batch)["loss"] < before["loss"]


def test_sft_metrics_say_nothing_of_rewards_and_engines(model_path: str) -> None:
    metrics = make_trainer(model_path, SFTConfig()).step(random_batch(1))
    assert {name.split("/")[0] for name in metrics} == {
        "train", "actor", "perf", "training", "response_length", "prompt_length"
    }  # fmt: skip
    assert not [name for name in metrics if "staleness" in name or "log_prob" in name]


def test_an_algorithm_of_rollouts_is_not_judged_by_data(model_path: str) -> None:
    with pytest.raises(UserError, match="GRPO is judged by the rewards"):
        make_trainer(model_path, GRPOConfig()).evaluate(random_batch(1))


def pairs(seed: int, num_pairs: int = 7, *, margin: float | None = None) -> Batch:
    """Texts of random tokens, each with one token after it; some share their beginning, as answers to a prompt do."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(num_pairs):
        prompt = rng.integers(3, 32, rng.integers(1, 9))
        texts += [np.concatenate([prompt, rng.integers(3, 32, rng.integers(1, 9))]) for _ in range(2)]
    num_samples = 2 * num_pairs
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    margins = np.tile([margin or 0.0, 0.0], num_pairs).astype(np.float32)
    nothing = np.zeros(num_samples, dtype=np.float32)
    return Batch(
        sample_ids=tuple(f"{index // 2}/{index % 2}" for index in range(num_samples)),
        group_ids=tuple(f"{index // 2}" for index in range(num_samples)),
        prompt_lengths=lengths,
        response_lengths=np.ones(num_samples, dtype=np.int32),
        token_ids=np.concatenate([np.append(text, 0) for text in texts]).astype(np.int32),
        loss_mask=np.ones(num_samples, dtype=bool),
        log_probs=nothing,
        behaviour_log_probs=nothing,
        weight_versions=np.zeros(num_samples, dtype=np.int32),
        rewards=nothing,
        reward_components={} if margin is None else {MARGIN: margins},
        finish_reasons=("stop",) * num_samples,
    )


def scores_by_transformers(model: Any, batch: Batch) -> torch.Tensor:
    """[pairs, 2] the logits of the texts, one at a time."""
    texts = [token_ids[:-1] for token_ids, _, _ in samples_of(batch)]
    return torch.cat([model(input_ids=torch.from_numpy(text)[None]).logits[:, 0] for text in texts]).view(-1, 2)


def pair_loss(scores: NDArray[np.float64], margin: float, centering: float) -> float:
    """Closed form."""
    chosen, rejected = scores.T
    losses = -np.log(1 / (1 + np.exp(-(chosen - rejected - margin)))) + centering * (chosen + rejected) ** 2
    return float(losses.mean())


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        *((family, LoraConfig()) for family in FAMILIES),
        *((family, LoraConfig(rank=2, alpha=8)) for family in FAMILIES if not family.endswith("_moe")),
    ],
)
def test_a_reward_model_is_a_folder_that_transformers_loads_with_the_same_scores(
    family: str, lora: LoraConfig, tmp_path: Path
) -> None:
    batch = pairs(4)
    model_path = save_tiny_model(tmp_path / "model", family)
    trainer = make_trainer(model_path, RewardModelConfig(), learning_rate=1e-2, lora=lora)
    losses = [trainer.step(batch)["train/loss"] for _ in range(3)]
    judged = trainer.evaluate(batch)
    assert judged["loss"] < losses[0]
    trainer.save_pretrained(tmp_path / "judge")
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", dtype=torch.float32)
    assert model.config.num_labels == 1
    with torch.no_grad():
        scores = scores_by_transformers(model, batch).numpy().astype(np.float64)
    assert judged["loss"] == pytest.approx(pair_loss(scores, 0.0, 0.0), abs=1e-5)
    assert judged["score"] == pytest.approx(scores.mean(), abs=1e-5)
    assert judged["score_margin"] == pytest.approx((scores[:, 0] - scores[:, 1]).mean(), abs=1e-5)
    assert judged["accuracy"] == (scores[:, 0] > scores[:, 1]).mean()


@pytest.mark.parametrize("kernels", ["torch", "native"])
@pytest.mark.parametrize(("margin", "centering"), [(None, 0.0), (0.5, 0.0), (0.5, 0.01)])
def test_the_gradient_of_preferences_is_that_of_the_closed_form(
    model_path: str, tmp_path: Path, kernels: str, margin: float | None, centering: float
) -> None:
    batch = pairs(5, margin=margin)
    trainer = make_trainer(model_path, RewardModelConfig(center_rewards_coefficient=centering), kernels=kernels)
    trainer.save_pretrained(tmp_path / "before")
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "before", dtype=torch.float32)
    scores = scores_by_transformers(model, batch)
    gaps = scores[:, 0] - scores[:, 1] - (margin or 0.0)
    loss = (-torch.nn.functional.logsigmoid(gaps) + centering * scores.sum(dim=1).square()).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(
        pair_loss(scores.detach().numpy().astype(np.float64), margin or 0.0, centering), abs=1e-6
    )
    metrics = trainer.step(batch)
    assert metrics["train/loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert metrics["actor/grad_norm"] == pytest.approx(gradient_norm(model), rel=1e-3)


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)], ids=["whole", "adapters"])
@pytest.mark.parametrize("algorithm", [SFTConfig(), RewardModelConfig()])
def test_a_state_that_was_saved_goes_on_with_the_same_bits(model_path: str, algorithm: Any, lora: LoraConfig) -> None:
    batches = [pairs(6), pairs(7)]
    whole, first = (make_trainer(model_path, algorithm, lora=lora) for _ in range(2))
    whole.step(batches[0])
    first.step(batches[0])
    second = make_trainer(model_path, algorithm, lora=lora)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert whole.step(batches[1]) == second.step(batches[1])
    expected, found = whole.state(), second.state()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


def test_a_model_that_scores_learns_on_from_its_folder(model_path: str, tmp_path: Path) -> None:
    batch = pairs(8)
    trainer = make_trainer(model_path, RewardModelConfig())
    trainer.step(batch)
    trainer.save_pretrained(tmp_path / "judge")
    again = make_trainer(str(tmp_path / "judge"), RewardModelConfig())
    assert again.evaluate(batch) == trainer.evaluate(batch)
