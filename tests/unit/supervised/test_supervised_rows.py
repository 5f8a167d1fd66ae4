"""From rows to tokens: which are learned, what is left out, and what is refused with its place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from supervised_data import TEMPLATE, load, sums, tokenizer, write

from rlserve.errors import DataError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.model import ModelText
from rlserve.trainers import Batch
from rlserve.trainers.algorithms.supervised.config import MARGIN, RewardModelConfig, SFTConfig


def texts(batch: Batch, template: str | None = None) -> list[tuple[str, str]]:
    """Of each sample the text of all that the model reads, and of what is learned."""
    known, found, start, response_start = tokenizer(template), [], 0, 0
    for prompt, response in zip(batch.prompt_lengths, batch.response_lengths, strict=True):
        tokens = batch.token_ids[start : start + prompt + response]
        mask = batch.loss_mask[response_start : response_start + response]
        found.append((known.decode(tokens), known.decode(tokens[prompt:][mask])))
        start, response_start = start + prompt + response, response_start + response
    return found


def all_texts(path: Path, **options: Any) -> list[tuple[str, str]]:
    """Of the held-out rows, which are all of them."""
    return texts(load(path, held_out_path=str(path), **options).held_out(), options.get("template"))


def test_a_completion_is_learned_with_the_end_token_and_its_prompt_is_not(tmp_path: Path) -> None:
    assert all_texts(write(tmp_path / "a.jsonl", sums(2))) == [("0+1=1<eos>", "1<eos>"), ("1+1=2<eos>", "2<eos>")]


def test_prompts_are_learned_too_if_asked_for_but_for_the_first_token(tmp_path: Path) -> None:
    algorithm = SFTConfig(completion_only_loss=False)
    assert all_texts(write(tmp_path / "a.jsonl", sums(1)), algorithm=algorithm) == [("0+1=1<eos>", "+1=1<eos>")]


CONVERSATION = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def test_of_a_conversation_only_what_the_assistant_says_is_learned(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": CONVERSATION}])
    # What stands after the last token that is learned is cut off.
    whole = "user: a<eos>\nassistant: b<eos>\nuser: c<eos>\nassistant: d<eos>"
    assert all_texts(path, template=TEMPLATE, apply_chat_template=True) == [(whole, "b<eos>d<eos>")]


def test_a_prompt_of_messages_with_a_completion_is_a_conversation(tmp_path: Path) -> None:
    rows = [{"prompt": CONVERSATION[:3], "completion": "d"}, {"prompt": "a", "completion": CONVERSATION[1:2]}]
    path = write(tmp_path / "a.jsonl", rows)
    found = all_texts(path, template=TEMPLATE, apply_chat_template=True, system_prompt="s")
    assert found == [
        ("system: s<eos>\nuser: a<eos>\nassistant: b<eos>\nuser: c<eos>\nassistant: d<eos>", "d<eos>"),
        ("system: s<eos>\nuser: a<eos>\nassistant: b<eos>", "b<eos>"),
    ]


def test_a_template_that_rewrites_earlier_turns_is_refused_with_a_remedy(tmp_path: Path) -> None:
    forgetful = TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] if loop.last else 'x' }}")
    path = write(tmp_path / "a.jsonl", [{"messages": CONVERSATION}])
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: .*writes message 1 otherwise .*give each answer a row of its own"
    ):
        load(path, held_out_path=str(path), template=forgetful, apply_chat_template=True)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "1"}, r"has no 'completion', only 'prompt'; set data\.completion_field to one of them"),
        ({"prompt": "1", "completion": ""}, "'completion' is empty"),
        ({"prompt": "1", "completion": 3}, "'completion' must be text or a list of chat messages"),
        ({"messages": CONVERSATION}, r"'messages' is a list of chat messages: set data\.apply_chat_template=true"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    path = write(tmp_path / "a.jsonl", [*sums(1), row])
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {problem}"):
        load(path, held_out_path=str(path))


def test_a_conversation_in_which_the_assistant_says_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": CONVERSATION[:1]}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: has no token to learn"):
        load(path, held_out_path=str(path), template=TEMPLATE, apply_chat_template=True)


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*sums(3), {"prompt": "1" * 20, "completion": "2"}]
    path = write(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        assert len(all_texts(path, max_length=8)) == 3
    assert "1 of 4 rows have more than 8 tokens and are left out; the longest has 22 (data.max_length)" in caplog.text
    with pytest.raises(DataError, match=r"every row has more than 3 tokens, the longest 22; raise data\.max_length"):
        load(path, held_out_path=str(path), model_length=3)


PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}


def read_by_reward(folder: Path, template: str | None, response: str) -> str:
    """What `reward.model_path` makes of an answer."""
    sample = RewardSample(
        id="a",
        prompt="1+1=",
        response=response,
        answer=None,
        finished=True,
        prompt_token_ids=(),
        response_token_ids=(),
    )
    made = tokenizer(template)
    made.save_pretrained(folder)
    config = RewardConfig(model_path=str(folder), apply_chat_template=template is not None)
    return str(made.decode(ModelText(config).token_ids(sample)))


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_reward_model_learns_the_texts_that_it_will_score(tmp_path: Path, template: str | None) -> None:
    path = write(tmp_path / "a.jsonl", [PAIR])
    chats = template is not None
    found = all_texts(path, algorithm=RewardModelConfig(), template=template, apply_chat_template=chats)
    read = [read_by_reward(tmp_path / "judge", template, response) for response in ("2", "3")]
    # One token follows, at which the score is taken.
    assert found == [(f"{text}<pad>", "<pad>") for text in read]


def test_chosen_and_rejected_may_be_whole_conversations(tmp_path: Path) -> None:
    pair = {"chosen": CONVERSATION[:2], "rejected": [CONVERSATION[0], {"role": "assistant", "content": "z"}]}
    path = write(tmp_path / "a.jsonl", [pair])
    found = all_texts(path, algorithm=RewardModelConfig(), template=TEMPLATE, apply_chat_template=True)
    assert [text for text, _ in found] == [f"user: a<eos>\nassistant: {said}<eos>\n<pad>" for said in "bz"]


def test_the_margin_of_a_pair_is_that_of_its_chosen_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**PAIR, "better_by": 1.5}])
    source = load(path, held_out_path=str(path), algorithm=RewardModelConfig(batch_size=2), margin_field="better_by")
    np.testing.assert_array_equal(source.next().reward_components[MARGIN], [1.5, 0.0, 1.5, 0.0])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**PAIR, "rejected": "2"}, "'chosen' and 'rejected' are the same: nothing is preferred"),
        ({"prompt": "1", "chosen": "2"}, r"has no 'rejected', .*set data\.rejected_field"),
        ({**PAIR, "better_by": "much"}, "'better_by' must be a number"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"better_by": 1, **row}])
    with pytest.raises(DataError, match=rf"a\.jsonl:1: {problem}"):
        load(path, held_out_path=str(path), algorithm=RewardModelConfig(), margin_field="better_by")
