"""Rewards that are Python functions: found by name, checked early, and answerable for what they return."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.factory import create_reward
from rlserve.rollout.rewards.function_loading import find_function


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


def scores(folder: Path, body: str) -> list[Score]:
    return create_reward(RewardConfig(function=reward_file(folder, body))).score([make_sample("2"), make_sample("3")])


def score(folder: Path, body: str) -> list[float | None]:
    found = scores(folder, body)
    assert [each.error for each in found] == [None, None]
    return [each.value for each in found]


def returning(value: str) -> str:
    """A reward file that returns an expression."""
    return f"""
from decimal import Decimal
from fractions import Fraction
import numpy as np
import torch

def score(sample):
    return {value}
"""


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
    rewards = [each.value for each in reward.score([make_sample("2"), make_sample("3")])]
    assert rewards == [1.0, 0.0]
    assert all(type(value) is float for value in rewards)


@pytest.mark.parametrize(
    "value",
    """1; 1.0; True; np.float32(1); np.float16(1); np.int64(1); np.bool_(True); Decimal(1); Fraction(2, 2); np.array(1)
    np.array([1.0]); torch.tensor(1.0); torch.ones(1, 1); {'score': 1}; {'score': np.array([1.0]), 'why': 'right'}
    """.strip()
    .replace("\n", ";")
    .split(";"),
)
def test_whatever_is_a_number_becomes_a_float(tmp_path: Path, value: str) -> None:
    rewards = score(tmp_path, returning(value))
    assert rewards == [1.0, 1.0]
    assert all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize("value", ["None", "{'score': None}"])
def test_none_leaves_the_answer_out(tmp_path: Path, value: str) -> None:
    assert score(tmp_path, returning(value)) == [None, None]


def test_the_other_numbers_of_a_dict_are_parts(tmp_path: Path) -> None:
    value = "{'score': 0.5, 'acc': True, 'format': torch.tensor(0), 'bad': float('nan'), 'pred': '72', 3: 4}"
    expected = Score(value=0.5, parts={"acc": 1.0, "format": 0.0, "3": 4.0})
    assert scores(tmp_path, returning(value)) == [expected, expected]


ASYNC_REWARD = """
import asyncio
lock = None
waiting = []

async def score(sample):
    global lock
    if lock is None:
        lock = asyncio.Lock()  # belongs to the event loop that it is first used in
    waiting.append(asyncio.get_running_loop().create_future())
    if len(waiting) == 2:  # both answers of the group are under way
        for future in waiting:
            future.set_result(None)
        waiting.clear()
    else:
        await waiting[0]
    async with lock:
        await asyncio.sleep(0)
    return sample.response == sample.answer
"""


def test_the_answers_of_a_group_are_awaited_together(tmp_path: Path) -> None:
    """Group after group, in one event loop."""
    reward = create_reward(RewardConfig(function=reward_file(tmp_path, ASYNC_REWARD)))
    for _ in range(2):
        assert [each.value for each in reward.score([make_sample("2"), make_sample("3")])] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "raise KeyError('gold')",
            r"my_reward\.py:score raised on prompt 0:5/1: KeyError at .*my_reward\.py:2: 'gold'",
        ),
        ("return int('x')", r"ValueError at .*my_reward\.py:2: invalid literal"),
        ("import json; return json.loads('{')", r"JSONDecodeError at .*my_reward\.py:2: "),
        ("return '1'", r"returned '1' \(str\) on prompt 0:5/1"),
        ("return float('nan')", r"returned nan \(float\) on prompt 0:5/1"),
        ("return -float('inf')", r"returned -inf \(float\) on prompt 0:5/1"),
        ("return 10**400", r"must return a finite number, None or a dict with 'score', but returned 1000"),
        ("from decimal import Decimal; return Decimal('sNaN')", r"returned Decimal\('sNaN'\)"),
        ("return [1.0]", r"returned \[1.0\] \(list\) on prompt 0:5/1"),
        ("import numpy as np; return np.ones(2)", r"returned array\(\[1., 1.\]\) \(ndarray\) on prompt 0:5/1"),
        ("import numpy as np; return np.array(['1'])", r"returned array\(\['1'\].* \(ndarray\)"),
        ("return {'acc': 1}", r"returned a dict without 'score': it has 'acc' on prompt 0:5/1"),
        ("return {'score': 'x'}", r"returned a dict whose 'score' must be a finite number or None: 'x' \(str\)"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_function_that_gives_no_number_is_named_with_the_prompt(
    tmp_path: Path, body: str, message: str, kind: str
) -> None:
    first, second = scores(tmp_path, f"{kind} score(sample):\n    {body}\n")
    for found in (first, second):
        assert (found.value, found.parts) == (None, {})
        assert re.search(message, found.error or "")


def test_one_answer_that_cannot_be_scored_is_no_other_ones_fault(tmp_path: Path) -> None:
    first, second = scores(tmp_path, "def score(sample):\n    return 1 / (int(sample.response) - 2)\n")
    assert "ZeroDivisionError" in (first.error or "")
    assert second == Score(value=1.0)


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
        find_function(function)


@pytest.mark.parametrize("body", ["def score(sample:\n", "import no_such_module_at_all\n", "1 / 0\n"])
def test_a_file_that_cannot_be_imported_is_found_out_early(tmp_path: Path, body: str) -> None:
    with pytest.raises(
        RewardError, match=r"my_reward\.py cannot be imported: (Syntax|ModuleNotFound|ZeroDivision)Error"
    ):
        find_function(reward_file(tmp_path, body))


OWN_PROCESSES = """
from __future__ import annotations
import multiprocessing
import pickle
from dataclasses import dataclass
from neighbour_of_reward import OFFSET

@dataclass
class Parsed:
    value: int

def double(parsed: Parsed) -> Parsed:
    return Parsed(parsed.value * 2)

def score(sample):
    parsed = pickle.loads(pickle.dumps(Parsed(int(sample.response))))
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            (parsed,) = pool.map(double, [parsed])
    return parsed.value + OFFSET
"""


def test_a_reward_file_is_a_module_like_any_other(tmp_path: Path) -> None:
    """A dataclass, a neighbour, pickles and processes of its own, in a process that knows nothing but the path."""
    (tmp_path / "neighbour_of_reward.py").write_text("OFFSET = 1\n")
    (tmp_path / "json.py").write_text("raise AssertionError('takes the place of an installed module')\n")
    program = f"""
if __name__ == "__main__":
    from types import SimpleNamespace
    from rlserve.rollout.rewards.function import FunctionReward
    print(FunctionReward({reward_file(tmp_path, OWN_PROCESSES)!r}).score([SimpleNamespace(response="3")]))
"""
    path = tmp_path / "main_program.py"
    path.write_text(program)
    # -P: the program's folder is not on the path, as in a scorer.
    found = subprocess.run([sys.executable, "-P", path], capture_output=True, text=True, check=False)
    assert found.stdout == "[Score(value=13.0, parts={}, error=None)]\n", found.stderr


def test_a_file_named_like_an_installed_module_does_not_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "datasets.py"
    path.write_text("def score(sample):\n    return 1\n")
    function = find_function(f"{path}:score")
    assert function(make_sample("1")) == 1
    assert importlib.util.find_spec("datasets") is not None
    assert importlib.util.find_spec("datasets").origin != str(path)  # type: ignore[union-attr]
