"""Programs and rows for the tests of the code reward."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
from test_rollout_reward_function import make_sample

from rlserve.errors import RewardError
from rlserve.rollout.columns import Columns
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.code.confined import ConfinedProgram, Program
from rlserve.rollout.rewards.code.examination import Verdict, examine
from rlserve.rollout.rewards.code.limits import Outcome
from rlserve.rollout.rewards.code.tests_of_row import read_tests
from rlserve.rollout.rewards.config import CodeRewardConfig

LIMITS = CodeRewardConfig(
    cpu_time_s=1, wall_time_s=20.0, memory_bytes=256 << 20, file_bytes=1 << 20, output_bytes=1 << 16, num_processes=6
)


@functools.cache
def _why_not_isolated() -> str | None:
    try:
        run("", LIMITS)
    except RewardError as error:
        return str(error)
    return None


def needs_isolation() -> None:
    """Skip a test by name where the kernel has no namespaces for this user."""
    why = _why_not_isolated()
    if why is not None:
        pytest.skip(why)


def run(text: str, limits: CodeRewardConfig = LIMITS, *, stdin: str = "", isolated: bool = True) -> Outcome:
    """Run a program by itself."""
    program = Program(files={"answer.py": text}, arguments=["answer.py"], stdin=stdin)
    with ConfinedProgram(program, limits, isolated=isolated) as running:
        return running.wait()


def verdict(text: str, tests: Any, limits: CodeRewardConfig = LIMITS, *, isolated: bool = True) -> Verdict:
    """Run a program against tests."""
    return examine(text, read_tests(tests), limits, isolated=isolated)


def code_sample(response: str, **columns: Any) -> RewardSample:
    """An answer to a prompt whose row has these columns."""
    return replace(make_sample(response), row=Columns(columns))
