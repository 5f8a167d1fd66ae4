"""Rewards that are models, against transformers itself on a small random one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rollout_tokenizers import character_tokenizer
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.factory import check_reward, create_reward


def make_model(
    folder: Path, *, num_labels: int = 1, max_position_embeddings: int = 64
) -> Qwen3ForSequenceClassification:
    """Save a random model with its tokenizer, and return it."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=max_position_embeddings,
        num_labels=num_labels,
        pad_token_id=0,
    )
    model = Qwen3ForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return model


def make_sample(number: int, response: str) -> RewardSample:
    return RewardSample(
        id=f"0:{number}/0",
        prompt=f"{number}+1=",
        response=response,
        answer=None,
        finished=True,
        prompt_token_ids=(),
        response_token_ids=(),
    )


def expected_reward(model: Qwen3ForSequenceClassification, text: str) -> float:
    """The logit of one text alone, without padding."""
    token_ids = torch.tensor([character_tokenizer()(text).input_ids])
    with torch.inference_mode():
        return float(model(input_ids=token_ids).logits[0, 0])


def test_the_reward_is_the_models_logit_whatever_the_batch(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    samples = [make_sample(number, "7" * (number % 6 + 1)) for number in range(20)]  # two passes, lengths differ
    rewards = create_reward(RewardConfig(model_path=str(tmp_path))).score(samples)
    expected = [expected_reward(model, sample.prompt + sample.response) for sample in samples]
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert len(set(rewards)) == 20


def test_of_a_text_that_is_too_long_the_end_counts(tmp_path: Path) -> None:
    model = make_model(tmp_path, max_position_embeddings=8)
    [reward] = create_reward(RewardConfig(model_path=str(tmp_path))).score([make_sample(3, "123456789")])
    assert reward == pytest.approx(expected_reward(model, "23456789"), abs=1e-5)


def test_a_reward_that_is_not_finite_is_named_with_the_prompt(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    reward = create_reward(RewardConfig(model_path=str(tmp_path)))
    with pytest.raises(RewardError, match=rf"{tmp_path} gave nan on prompt 0:4/0"):
        reward.score([make_sample(4, "1")])


def test_a_model_with_several_labels_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path, num_labels=3)
    with pytest.raises(RewardError, match="must have one label, but has 3"):
        check_reward(RewardConfig(model_path=str(tmp_path)))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"not a model's folder: it has no config\.json"):
        check_reward(RewardConfig(model_path=str(tmp_path)))


def test_a_model_that_is_there_passes_the_check(tmp_path: Path) -> None:
    make_model(tmp_path)
    check_reward(RewardConfig(model_path=str(tmp_path)))
