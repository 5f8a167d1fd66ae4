"""Policy and critic against plain transformers, sample by sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_samples import FAMILIES, random_batch, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.errors import ModelError
from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.elastic.base import LocalGroup


def plain_log_probs(model_path: str, batch: Batch) -> np.ndarray:
    """One sample at a time, whole sequence, no padding."""
    model = AutoModelForCausalLM.from_pretrained(
        model_path,
        dtype=torch.float64,
        experts_implementation="eager",  # the other ones have no float64
    ).eval()
    found, start = [], 0
    for prompt, response in zip(batch.prompt_lengths, batch.response_lengths, strict=True):
        tokens = torch.from_numpy(batch.token_ids[start : start + prompt + response].astype(np.int64))
        start += prompt + response
        with torch.no_grad():
            log_probs = model(tokens[None]).logits[0].log_softmax(-1)
        found.append(log_probs[prompt - 1 : -1].gather(-1, tokens[prompt:, None])[:, 0])
    return torch.cat(found).numpy()


class Unreachable(LocalGroup):
    """Rank 0 of two, without the other."""

    num_ranks = 2

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError("nobody answers")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_log_probs_equal_plain_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    path = save_tiny_model(tmp_path, family, tied=tied)
    trainer = create_trainer(TorchTrainerConfig(num_logical_shards=3), PPOConfig(), model_path=path, seed=0)
    batch = random_batch(0)
    np.testing.assert_allclose(trainer.log_probs(batch), plain_log_probs(path, batch), atol=2e-5)


def test_one_rank_scores_alone_while_the_others_do_not_know(tmp_path: Path) -> None:
    trainer = create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=save_tiny_model(tmp_path), seed=0)
    batch, together = random_batch(0), trainer.log_probs(random_batch(0))
    trainer._backend._group = Unreachable()  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="nobody answers"):
        trainer.log_probs(batch)
    np.testing.assert_allclose(trainer.log_probs(batch, alone=True), together, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_hugging_face_names_and_a_saved_folder_loads_again(tmp_path: Path, family: str) -> None:
    path = save_tiny_model(tmp_path / "model", family)
    trainer = create_trainer(TorchTrainerConfig(learning_rate=1e-2), PPOConfig(), model_path=path, seed=0)
    assert set(trainer.weights()) == set(load_file(f"{path}/model.safetensors"))
    trainer.step(random_batch(0))
    trainer.save_pretrained(tmp_path / "saved")
    loaded = load_file(tmp_path / "saved/model.safetensors")
    for name, tensor in trainer.weights().items():
        assert torch.equal(loaded[name], tensor)
    batch = random_batch(1)
    again = create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=str(tmp_path / "saved"), seed=0)
    assert np.array_equal(again.log_probs(batch), trainer.log_probs(batch))


def test_the_critic_head_hangs_on_the_seed_and_starts_small(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = random_batch(0)

    def values(seed: int) -> np.ndarray:
        return create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=path, seed=seed).values(batch)

    assert np.array_equal(values(1), values(1))
    assert not np.array_equal(values(1), values(2))
    assert np.abs(values(1)).max() < 1.0


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no model that can be trained"):
        create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=str(tmp_path), seed=0)


def test_an_unsupported_architecture_is_named_with_those_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"):
        create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=str(tmp_path), seed=0)


def test_missing_weights_are_named_and_not_drawn_at_random(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    tensors = load_file(f"{path}/model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, f"{path}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights .* model\.norm\.weight"):
        create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=path, seed=0)
