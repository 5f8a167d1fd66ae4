from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import FILES_ONLY
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import ConfigurationError
from rlserve.tracking.answers import Answer, AnswersFile, Keep, by_reward, chosen, read_answers, worst_and_best
from rlserve.tracking.config import TrackingConfig
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.tracker import create_tracker

ANSWER = Answer(
    step=1,
    kind="training",
    group_id="0:3",
    index=1,
    prompt="12+30=",
    reference="42",
    response="41 <é>\n",
    reward=0.0,
    reward_parts={"format": 1.0},
    finish_reason="stop",
    num_prompt_tokens=6,
    num_response_tokens=7,
    weight_spans=((0, 0, 4), (1, 4, 7)),
    staleness=1,
)


def rewarded(*rewards: float | None) -> list[Answer]:
    return [replace(ANSWER, index=index, reward=reward) for index, reward in enumerate(rewards)]


@given(num_groups=st.integers(0, 200), keep=st.one_of(st.integers(0, 300), st.floats(0, 1), st.just("all")))
def test_chosen_groups_are_as_many_as_asked_for_and_spread(num_groups: int, keep: Keep) -> None:
    kept = chosen(num_groups, keep)
    assert all(0 <= one < num_groups for one in kept)
    gaps = [after - before for before, after in pairwise(kept)]
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
    if keep == "all":
        assert kept == tuple(range(num_groups))
    elif isinstance(keep, int):
        assert len(kept) == min(keep, num_groups)
    else:
        assert keep * num_groups <= len(kept) <= keep * num_groups + 1


def test_answers_survive_the_file_and_a_resumed_run_drops_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    file = AnswersFile(path)
    file.log_answers(1, "training", lambda: [ANSWER])
    file.log_answers(2, "training", lambda: [replace(ANSWER, step=2)])
    file.close(0)
    assert read_answers(path) == [ANSWER, replace(ANSWER, step=2)]
    AnswersFile(path, resumed_step=2).close(0)
    assert read_answers(path) == [ANSWER]
    assert read_answers(tmp_path / "none.jsonl") == []


def test_texts_are_made_in_another_thread_and_only_if_they_are_kept(tmp_path: Path) -> None:
    made_in: list[threading.Thread] = []

    def make() -> Sequence[Answer]:
        made_in.append(threading.current_thread())
        return [ANSWER]

    for name, samples in (("kept", 4), ("not", 0)):
        folder = RunFolder.create(tmp_path, name)
        tracker = create_tracker(replace(FILES_ONLY, samples=samples), folder, {})
        tracker.log_answers(1, "training", make)
        tracker.close(0)
        assert read_answers(folder.answers_file) == ([ANSWER] if samples else [])
    assert len(made_in) == 1
    assert made_in[0] is not threading.main_thread()


def test_order_by_reward() -> None:
    answers = rewarded(0.5, None, 1.0, 0.0)
    assert [answer.index for answer in by_reward(answers)] == [1, 3, 0, 2]
    assert [answer.index for answer in by_reward(answers, best_first=True)] == [2, 0, 3, 1]
    assert [answer.index for answer in worst_and_best(answers, 1)] == [1, 2]
    assert [answer.index for answer in worst_and_best(answers, 2)] == [1, 3, 0, 2]
    assert worst_and_best([], 2) == []


def test_the_worst_and_the_best_are_of_different_prompts_where_there_are_enough() -> None:
    answers = [
        replace(ANSWER, group_id=group, index=index, reward=reward)
        for group, rewards in (("a", (0.0, 0.0, 0.0)), ("b", (1.0, 1.0, 1.0)), ("c", (0.5, 0.5)))
        for index, reward in enumerate(rewards)
    ]
    assert [(answer.group_id, answer.reward) for answer in worst_and_best(answers, 2)] == [
        ("a", 0.0),
        ("c", 0.5),
        ("c", 0.5),
        ("b", 1.0),
    ]


@pytest.mark.parametrize("samples", [-1, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(samples: float) -> None:
    with pytest.raises(ConfigurationError, match=r"samples.*share from 0\.0 to 1\.0"):
        TrackingConfig(samples=samples)
