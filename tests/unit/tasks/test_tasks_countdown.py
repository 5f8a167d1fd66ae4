"""The task of long answers: its prompts, its reward, its careless demonstrator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.tasks.base import split_of
from rlserve.tasks.countdown import (
    LARGEST_EASY_START,
    LARGEST_START,
    MAX_NUM_FORGOTTEN,
    CountdownTask,
    Deed,
    count_down,
    reward,
)


@dataclass(frozen=True, kw_only=True)
class Answered:
    response: str
    answer: str | None
    finished: bool = True
    id: str = "0"
    prompt: str = "837#12:"


def test_the_answer_is_as_documented() -> None:
    assert count_down(12, at_borrow=lambda: "borrow") == "12,11,10,9,8,7,6,5,4,3,2,1"
    assert count_down(1, at_borrow=lambda: "end") == "1"


def test_who_forgets_counts_the_same_ten_again_and_who_ends_is_short() -> None:
    deeds: Iterator[Deed] = iter(("forget", "borrow", "end"))
    twice = count_down(21, at_borrow=lambda: next(deeds))
    assert twice == "21,20,29,28,27,26,25,24,23,22,21,20,19,18,17,16,15,14,13,12,11,10"


def test_who_forgets_for_ever_ends_at_last() -> None:
    numbers = count_down(11, at_borrow=lambda: "forget").split(",")
    assert numbers.count("10") == MAX_NUM_FORGOTTEN + 1
    assert numbers[-1] == "10"


@given(start=st.integers(1, LARGEST_START))
def test_a_right_answer_has_every_number_once_and_nothing_else_is_right(start: int) -> None:
    answer = count_down(start, at_borrow=lambda: "borrow")
    assert [int(number) for number in answer.split(",")] == list(range(start, 0, -1))
    assert reward(Answered(response=answer, answer=answer)) == 1.0
    assert reward(Answered(response=answer, answer=answer, finished=False)) == 0.0
    assert reward(Answered(response=f"{answer},0", answer=answer)) == 0.0
    assert reward(Answered(response=answer[:-1], answer=answer)) == 0.0


def test_both_splits_are_apart_repeatable_and_of_all_lengths() -> None:
    task = CountdownTask()
    train, held_out = task.records(seed=0, split="train", count=900), task.records(seed=1, split="held_out", count=100)
    assert train == task.records(seed=0, split="train", count=900)
    assert {split_of(record.prompt) for record in train} == {"train"}
    assert {split_of(record.prompt) for record in held_out} == {"held_out"}
    lengths = [len(record.answer) for record in train]
    assert (min(lengths), max(lengths)) == (1, 197)


@pytest.mark.parametrize("easy", [False, True])
def test_demonstrations_are_of_training_prompts_and_mostly_careless(easy: bool) -> None:
    task = CountdownTask()
    num_right, num_too_short, num_too_long = 0, 0, 0
    for shown in islice(task.demonstrations(seed=0, easy=easy), 400):
        assert set(shown.prompt + shown.response) <= set(task.alphabet)
        assert split_of(shown.prompt) == "train"
        start = int(shown.prompt.removesuffix(":").partition("#")[2])
        assert start <= (LARGEST_EASY_START if easy else LARGEST_START)
        right = count_down(start, at_borrow=lambda: "borrow")
        num_right += shown.response == right
        num_too_short += len(shown.response) < len(right)
        num_too_long += len(shown.response) > len(right)
    assert 40 < num_right < 240
    assert num_too_short > 20
    assert num_too_long > 20
