"""What a reward is shown of an answer, and what it cannot spoil for the next."""

from __future__ import annotations

import dataclasses
import pickle

from rollout_builders import make_group, make_sample

from rlserve.engine.requests.request import FinishReason
from rlserve.rollout.columns import Columns
from rlserve.rollout.rewards.samples import reward_sample


def test_a_sample_carries_the_whole_row_and_the_rendered_prompt() -> None:
    group = dataclasses.replace(
        make_group(3),
        prompt_rendered="<user>prompt 3",
        messages=({"role": "user", "content": "prompt 3"},),
        columns=Columns({"prompt": "prompt 3", "tests": ["f(2)==4"]}),
    )
    sample = reward_sample(group, make_sample(1, (0, 0), finish=FinishReason.LENGTH), id="0:3/1", response="9")
    assert (sample.id, sample.prompt, sample.response, sample.answer) == ("0:3/1", "prompt 3", "9", "3")
    assert sample.prompt_rendered == "<user>prompt 3"
    assert sample.messages == ({"role": "user", "content": "prompt 3"},)
    assert dict(pickle.loads(pickle.dumps(sample)).row) == {"prompt": "prompt 3", "tests": ["f(2)==4"]}
    assert not sample.finished
    assert sample.response_token_ids == (100, 101)


def test_what_a_reward_does_to_a_sample_stays_there() -> None:
    group = dataclasses.replace(
        make_group(0),
        answer=["1", "2"],
        messages=({"role": "user", "content": "a"},),
        columns=Columns({"tests": {"inputs": [1]}}),
    )
    first, second = (reward_sample(group, make_sample(0, (0,)), id=f"0:0/{index}", response="") for index in (0, 1))
    assert isinstance(first.answer, list)
    first.answer.pop()
    first.row["tests"]["inputs"].append(2)
    assert first.messages is not None
    first.messages[0]["content"] = "b"
    assert second.answer == ["1", "2"]
    assert second.row["tests"] == {"inputs": [1]}
    assert second.messages == ({"role": "user", "content": "a"},)
