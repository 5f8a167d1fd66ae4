from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.tasks.addition import (
    FORGET_PROBABILITY,
    MAX_NUM_COLUMNS,
    MIN_NUM_COLUMNS,
    AdditionTask,
    reward,
    work_out,
)
from rlserve.tasks.base import Split, split_of

operands = st.integers(min_value=1, max_value=10**MAX_NUM_COLUMNS - 1)


@dataclass(frozen=True)
class FinishedSample:
    response: str
    answer: str | None
    finished: bool = True
    prompt: str = "407+86="
    id: str = "7"


def always() -> bool:
    return True


def never() -> bool:
    return False


def test_the_worked_answer_is_as_documented() -> None:
    assert work_out(407, 86, remember_carry=always) == "7+6+0=13;0+8+1=09;4+0+0=04;493"
    assert work_out(407, 86, remember_carry=never) == "7+6+0=13;0+8+0=08;4+0+0=04;483"


@given(first=operands, second=operands)
def test_whoever_remembers_every_carry_is_right(first: int, second: int) -> None:
    worked = work_out(first, second, remember_carry=always)
    assert reward(FinishedSample(worked, str(first + second))) == 1.0
    num_columns = max(len(str(first)), len(str(second)))
    assert re.fullmatch(rf"(\d\+\d\+[01]=\d\d;){{{num_columns}}}\d+", worked)


@given(first=operands, second=operands)
def test_whoever_is_asked_for_a_carry_and_forgets_it_is_wrong(first: int, second: int) -> None:
    asked: list[None] = []

    def forget() -> bool:
        asked.append(None)
        return False

    worked = work_out(first, second, remember_carry=forget)
    assert reward(FinishedSample(worked, str(first + second))) == (0.0 if asked else 1.0)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (FinishedSample("7+6+0=13;493", "493"), 1.0),
        (FinishedSample("493", "493"), 1.0),
        (FinishedSample("7+6+0=13;493", "493", finished=False), 0.0),
        (FinishedSample("493;", "493"), 0.0),
        (FinishedSample("7+6+0=13;0493", "493"), 0.0),
        (FinishedSample("7+6+0=13;49", "493"), 0.0),
        (FinishedSample("", "493"), 0.0),
        (FinishedSample("493", None), 0.0),
    ],
)
def test_the_reward_wants_exactly_the_final_answer(sample: FinishedSample, expected: float) -> None:
    assert reward(sample) == expected


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_records_are_different_right_and_repeatable(split: Split) -> None:
    records = AdditionTask().records(seed=3, split=split, count=600)
    assert len({record.prompt for record in records}) == 600
    for record in records:
        first, second = record.prompt.removesuffix("=").split("+")
        assert int(first) + int(second) == int(record.answer)
        assert split_of(record.prompt) == split
    assert AdditionTask().records(seed=3, split=split, count=600) == records
    assert AdditionTask().records(seed=4, split=split, count=600) != records


def test_every_number_of_columns_is_as_frequent() -> None:
    records = AdditionTask().records(seed=0, split="train", count=2000)
    lengths = [max(map(len, record.prompt.removesuffix("=").split("+"))) for record in records]
    for num_columns in range(MIN_NUM_COLUMNS, MAX_NUM_COLUMNS + 1):
        assert 400 < lengths.count(num_columns) < 600


def test_demonstrations_show_no_held_out_problem_and_stay_in_the_alphabet() -> None:
    shown = list(islice(AdditionTask().demonstrations(seed=0, easy=False), 2000))
    assert {split_of(demonstration.prompt) for demonstration in shown} == {"train"}
    assert set("".join(one.prompt + one.response for one in shown)) == set(AdditionTask.alphabet)
    assert shown == list(islice(AdditionTask().demonstrations(seed=0, easy=False), 2000))


def test_the_demonstrator_forgets_as_often_as_documented() -> None:
    responses = [one.response for one in islice(AdditionTask().demonstrations(seed=1, easy=False), 4000)]
    due = [following for response in responses for following in re.findall(r"=1\d;\d\+\d\+([01])", response)]
    assert due.count("0") / len(due) == pytest.approx(FORGET_PROBABILITY, abs=0.03)
    not_due = [following for response in responses for following in re.findall(r"=0\d;\d\+\d\+([01])", response)]
    assert set(not_due) == {"0"}


def test_easy_demonstrations_are_the_short_ones() -> None:
    easy = list(islice(AdditionTask().demonstrations(seed=0, easy=True), 500))
    all_of_them = list(islice(AdditionTask().demonstrations(seed=0, easy=False), 2000))
    assert {one.response.count(";") for one in easy} == {2, 3}
    assert {one.response.count(";") for one in all_of_them} == {2, 3, 4, 5}
