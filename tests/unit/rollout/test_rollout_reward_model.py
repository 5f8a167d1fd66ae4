"""Rewards that are models, against transformers itself on a small random one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rollout_tokenizers import character_tokenizer
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from rlserve.errors import ConfigurationError, RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.factory import check_reward_model, create_reward


def make_model(
    folder: Path, *, num_labels: int = 1, max_position_embeddings: int = 64, template: str | None = None
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
    character_tokenizer(chat_template=template).save_pretrained(folder)
    return model


def make_sample(number: int, response: str, *, finished: bool = False) -> RewardSample:
    return RewardSample(
        id=f"0:{number}/0",
        prompt=f"{number}+1=",
        response=response,
        answer=None,
        finished=finished,
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
    scores = create_reward(RewardConfig(model_path=str(tmp_path))).score(samples)
    rewards = [score.value for score in scores]
    expected = [expected_reward(model, sample.prompt + sample.response) for sample in samples]
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert len(set(rewards)) == 20


def test_of_a_text_that_is_too_long_the_end_counts(tmp_path: Path) -> None:
    model = make_model(tmp_path, max_position_embeddings=8)
    [score] = create_reward(RewardConfig(model_path=str(tmp_path))).score([make_sample(3, "123456789")])
    assert score.value == pytest.approx(expected_reward(model, "23456789"), abs=1e-5)
    assert score.parts == {"truncated": 1.0}


def test_a_reward_that_is_not_finite_is_named_with_the_prompt(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    reward = create_reward(RewardConfig(model_path=str(tmp_path)))
    [score] = reward.score([make_sample(4, "1")])
    assert score.error == f"reward model {tmp_path} gave nan on prompt 0:4/0"


def test_a_model_with_several_labels_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path, num_labels=3)
    with pytest.raises(RewardError, match="must have one label, but has 3"):
        check_reward_model(RewardConfig(model_path=str(tmp_path)), policy_has_template=True)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"not a model's folder: it has no config\.json"):
        check_reward_model(RewardConfig(model_path=str(tmp_path)), policy_has_template=True)


def test_a_model_that_is_there_passes_the_check(tmp_path: Path) -> None:
    make_model(tmp_path)
    check_reward_model(RewardConfig(model_path=str(tmp_path)), policy_has_template=True)


TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def scored(folder: Path, sample: RewardSample, *, apply_chat_template: bool | None = None) -> float | None:
    config = RewardConfig(model_path=str(folder), apply_chat_template=apply_chat_template)
    [score] = create_reward(check_reward_model(config, policy_has_template=True)).score([sample])
    assert score.error is None
    return score.value


def test_prompt_and_answer_are_the_models_own_conversation(tmp_path: Path) -> None:
    """Against transformers by hand: its template, its logit."""
    model = make_model(tmp_path, template=TEMPLATE)
    tokenizer = character_tokenizer(chat_template=TEMPLATE)
    messages = [{"role": "user", "content": "3+1="}, {"role": "assistant", "content": "4"}]
    by_hand = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        expected = float(model(**by_hand).logits[0, 0])
    assert scored(tmp_path, make_sample(3, "4", finished=True)) == pytest.approx(expected, abs=1e-5)
    with_system = [{"role": "system", "content": "add"}, {"role": "user", "content": "3+1="}]
    sample = replace(make_sample(3, "4"), messages=tuple(with_system))
    unfinished = expected_reward(model, "<system>add<eos><user>3+1=<eos><assistant>4")
    assert scored(tmp_path, sample) == pytest.approx(unfinished, abs=1e-5), "one that was cut off has no end"
    empty = expected_reward(model, "<user>3+1=<eos><assistant><eos>")
    assert scored(tmp_path, make_sample(3, "", finished=True)) == pytest.approx(empty, abs=1e-5)


def test_without_a_template_only_a_finished_answer_ends_in_the_end_token(tmp_path: Path) -> None:
    model = make_model(tmp_path, template=TEMPLATE)
    for finished, text in ((True, "3+1=4<eos>"), (False, "3+1=4")):
        found = scored(tmp_path, make_sample(3, "4", finished=finished), apply_chat_template=False)
        assert found == pytest.approx(expected_reward(model, text), abs=1e-5)


def test_the_template_is_used_where_both_models_have_one(tmp_path: Path) -> None:
    make_model(tmp_path / "with", template=TEMPLATE)
    make_model(tmp_path / "without")
    with_template = RewardConfig(model_path=str(tmp_path / "with"))
    without = RewardConfig(model_path=str(tmp_path / "without"))
    assert check_reward_model(with_template, policy_has_template=True).apply_chat_template is True
    assert check_reward_model(with_template, policy_has_template=False).apply_chat_template is False
    assert check_reward_model(without, policy_has_template=True).apply_chat_template is False
    with pytest.raises(RewardError, match="has no chat template"):
        check_reward_model(replace(without, apply_chat_template=True), policy_has_template=False)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "reward-model")
    monkeypatch.setenv("HOME", str(tmp_path))
    check_reward_model(RewardConfig(model_path="~/reward-model"), policy_has_template=False)


def test_a_gpu_is_used_only_where_ray_sets_one_aside() -> None:
    assert RewardConfig(model_path="m").model_device == "cpu"
    assert RewardConfig(model_path="m", num_gpus=0.5).model_device == "cuda"
    with pytest.raises(ConfigurationError, match=r"needs reward\.num_gpus above 0"):
        RewardConfig(model_path="m", device="cuda")
