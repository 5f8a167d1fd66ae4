"""Rewards that are Python functions: found by name, checked early, and answerable for what they return."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.factory import check_reward, create_reward


def make_sample(response: str, *, sample_id: str = "0:5/1") -> RewardSample:
    return RewardSample(
        id=sample_id,
        prompt="1+1=",
        response=response,
        answer="2",
        finished=True,
        prompt_token_ids=(1, 2),
        response_token_ids=(3,),
    )


def reward_file(folder: Path, body: str) -> str:
    path = folder / "my_reward.py"
    path.write_text(body)
    return f"{path}:score"


def score(folder: Path, body: str) -> list[float]:
    return create_reward(RewardConfig(function=reward_file(folder, body))).score([make_sample("2"), make_sample("3")])


def test_a_function_of_a_file_scores_each_sample(tmp_path: Path) -> None:
    assert score(tmp_path, "def score(sample):\n    return 0.5 if sample.response == sample.answer else -1\n") == [
        0.5,
        -1,
    ]


def test_a_function_of_a_module_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_reward_module.py").write_text("def right(sample):\n    return sample.response == sample.answer\n")
    reward = create_reward(RewardConfig(function="some_reward_module:right"))
    rewards = reward.score([make_sample("2"), make_sample("3")])
    assert rewards == [1.0, 0.0]
    assert all(type(value) is float for value in rewards)


@pytest.mark.parametrize(
    "value", ["1", "1.0", "True", "np.float32(1)", "np.float16(1)", "np.int64(1)", "np.bool_(True)"]
)
def test_whatever_is_a_number_becomes_a_float(tmp_path: Path, value: str) -> None:
    rewards = score(tmp_path, f"import numpy as np\ndef score(sample):\n    return {value}\n")
    assert rewards == [1.0, 1.0]
    assert all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('gold')", r"my_reward\.py:score raised on prompt 0:5/1: KeyError: 'gold'"),
        ("return None", r"must return a finite number, but returned None \(NoneType\) on prompt 0:5/1"),
        ("return '1'", r"returned '1' \(str\) on prompt 0:5/1"),
        ("return float('nan')", r"returned nan \(float\) on prompt 0:5/1"),
        ("return -float('inf')", r"returned -inf \(float\) on prompt 0:5/1"),
        ("return [1.0]", r"returned \[1.0\] \(list\) on prompt 0:5/1"),
    ],
)
def test_a_function_that_gives_no_number_is_named_with_the_prompt(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(tmp_path, f"def score(sample):\n    {body}\n")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module_at_all:score", "no_such_module_at_all cannot be imported: ModuleNotFoundError"),
        ("json:loadz", "json has no 'loadz'; it has .*loads"),
        ("math:pi", "'pi' is not a function but float"),
        ("nowhere/reward.py:score", "no such file: nowhere/reward.py"),
        ("json", "must be package.module:function or path/to/file.py:function"),
        ("json:", "must be package.module:function or path/to/file.py:function"),
    ],
)
def test_a_function_that_is_not_there_is_found_out_early(function: str, message: str) -> None:
    with pytest.raises(RewardError, match=rf"reward\.function={function}: .*{message}"):
        check_reward(RewardConfig(function=function))


@pytest.mark.parametrize("body", ["def score(sample:\n", "import no_such_module_at_all\n", "1 / 0\n"])
def test_a_file_that_cannot_be_imported_is_found_out_early(tmp_path: Path, body: str) -> None:
    with pytest.raises(
        RewardError, match=r"my_reward\.py cannot be imported: (Syntax|ModuleNotFound|ZeroDivision)Error"
    ):
        check_reward(RewardConfig(function=reward_file(tmp_path, body)))


def test_a_good_function_passes_the_check(tmp_path: Path) -> None:
    check_reward(RewardConfig(function=reward_file(tmp_path, "def score(sample):\n    return 1\n")))
