"""The task of paced runs: its prompts, its reward, its demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import pytest

from rlserve.tasks.digits import DigitsTask, reward


@dataclass(frozen=True, kw_only=True)
class Answered:
    id: str = "0"
    prompt: str = "7123456:"
    response: str
    answer: str | None = "7"
    finished: bool = False


@pytest.mark.parametrize(("response", "expected"), [("7777", 1.0), ("7123", 0.25), ("", 0.0), ("000", 0.0)])
def test_the_reward_is_the_share_of_the_first_digit(response: str, expected: float) -> None:
    assert reward(Answered(response=response)) == expected


def test_both_splits_are_apart_and_repeatable() -> None:
    task = DigitsTask()
    train, held_out = task.records(seed=0, split="train", count=300), task.records(seed=1, split="held_out", count=100)
    assert train == task.records(seed=0, split="train", count=300)
    assert not {record.prompt for record in train} & {record.prompt for record in held_out}
    assert all(record.answer == record.prompt[0] for record in train)


def test_demonstrations_are_of_training_prompts_and_of_the_alphabet() -> None:
    task = DigitsTask()
    for shown in islice(task.demonstrations(seed=0, easy=False), 50):
        assert set(shown.prompt + shown.response) <= set(task.alphabet)
