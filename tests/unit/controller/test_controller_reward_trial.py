"""Which answers the reward is tried on before a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rlserve.config.tree import ModelConfig, RunConfig
from rlserve.controller.preparation.reward_trial import MAX_PROMPTS, describe_score, reward_trial, trial_samples
from rlserve.errors import RewardError
from rlserve.rollout.config import DataConfig, RewardConfig
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import Score


def prompt(row: int, answer: Any) -> PromptGroup:
    return PromptGroup(
        id=f"held_out:{row}", position=row, row=row, prompt_text="1+1=", prompt_token_ids=(1, 2), answer=answer
    )


class FakeTokenizer:
    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return type("Encoding", (), {"input_ids": [ord(character) for character in text]})()


def config(**reward: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(path="m"), data=DataConfig(path="d"), reward=RewardConfig(**reward))


def test_the_reference_answer_is_the_response() -> None:
    tokenizer: Any = FakeTokenizer()
    held_out = [prompt(0, None), prompt(1, ["2", "two"]), prompt(2, "72"), *(prompt(row, "1") for row in range(3, 9))]
    samples = trial_samples(held_out, tokenizer)
    assert [sample.id for sample in samples] == ["held_out:1", "held_out:2", "held_out:3", "held_out:4"]
    assert len(samples) == MAX_PROMPTS
    assert [sample.response for sample in samples] == ["", "72", "1", "1"]
    assert (samples[1].answer, samples[1].response_token_ids, samples[1].finished) == ("72", (55, 50), True)
    assert [sample.answer for sample in trial_samples([prompt(0, None)], tokenizer)] == [None]


def test_a_function_is_called_once_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "called.py"
    path.write_text(
        "from pathlib import Path\n"
        "def score(sample):\n"
        "    with Path(__file__).with_name('calls').open('a') as file:\n"
        "        file.write(sample.response + '\\n')\n"
        "    return float(sample.response)\n"
    )
    tokenizer: Any = FakeTokenizer()
    with reward_trial(config(function=f"{path}:score"), None) as try_reward:
        score = try_reward([prompt(0, "72")], tokenizer)
        assert score is not None
        assert describe_score(score) == "72"
        assert (tmp_path / "calls").read_text() == "72\n"
        with pytest.raises(RewardError, match=r"called\.py:5: could not convert .*tried before the run"):
            try_reward([prompt(1, "x")], tokenizer)


@pytest.mark.parametrize("reward", [{"model_path": "org/model"}, {"function": "no_such:f", "num_gpus": 1.0}])
def test_what_may_be_no_part_of_this_machine_is_not_tried(reward: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    with reward_trial(config(**reward), None) as try_reward:
        tokenizer: Any = FakeTokenizer()
        try_reward([prompt(0, "1")], tokenizer)


def test_a_score_in_words() -> None:
    assert describe_score(Score(value=0.5, parts={"acc": 1.0})) == "0.5, with acc 1"
    assert describe_score(Score()) == "None"
