"""The reward ``builtin:code``: what an answer's program is worth by its tests."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlserve.errors import RewardError
from rlserve.rollout.rewards.base import Reward, RewardSample, Score
from rlserve.rollout.rewards.code.answer_program import program_in
from rlserve.rollout.rewards.code.examination import examine
from rlserve.rollout.rewards.code.tests_of_row import InputOutput, NoTestsError, read_tests
from rlserve.rollout.rewards.config import CODE, CodeRewardConfig

logger = logging.getLogger(__name__)

TESTS_PASSED = "tests_passed"
TIMED_OUT = "timed_out"


class CodeReward(Reward):
    """Runs answers' programs, ``reward.code.num_parallel`` at once."""

    def __init__(self, config: CodeRewardConfig) -> None:
        """
        Raises:
            RewardError: programs cannot be shut off on this machine, and ``reward.code.isolation`` requires it.
        """
        self._config = config
        self._isolated = _can_isolate(config)
        # Kept: a program ends with the thread that started it.
        self._threads = ThreadPoolExecutor(config.num_parallel, thread_name_prefix="code")

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """1 where all tests pass, else 0, or the share that passes; with parts ``tests_passed`` and ``timed_out``."""
        return list(self._threads.map(self._score, samples))

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _score(self, sample: RewardSample) -> Score:
        field = self._config.tests_field
        try:
            tests = read_tests(_value_at(sample.row, field))
        except NoTestsError as error:
            return Score(error=f"reward {CODE} on prompt {sample.id}: reward.code.tests_field={field}: {error}")
        try:
            verdict = examine(program_in(sample.response), tests, self._config, isolated=self._isolated)
        except (RewardError, OSError) as error:
            return Score(error=f"reward {CODE} on prompt {sample.id}: {error}")
        share = verdict.num_passed / verdict.num_tests
        parts = {TESTS_PASSED: share, TIMED_OUT: float(verdict.timed_out)}
        return Score(value=share if self._config.partial_credit else float(share == 1), parts=parts)


def _can_isolate(config: CodeRewardConfig) -> bool:
    """Whether programs run shut off; False only where the configuration lets them run otherwise.

    Raises:
        RewardError: they do not run as they must.
    """
    why = _why_not(config, isolated=True)
    if why is None:
        return True
    if config.isolation == "required":
        raise RewardError(
            f"reward.function={CODE}: {why}. Allow namespaces to this user (docs/rewards.md says how), or take "
            "reward.code.isolation=if_possible: then programs can read and delete your files and use the network"
        )
    if (neither := _why_not(config, isolated=False)) is not None:
        raise RewardError(f"reward.function={CODE}: {neither}")
    logger.warning("%s: programs of answers run with this user's rights, and with the limits of reward.code alone", why)
    return False


def _why_not(config: CodeRewardConfig, *, isolated: bool) -> str | None:
    """Why a program that does next to nothing does not run; None where it does."""
    try:
        verdict = examine("print(1)", (InputOutput(input="", output="1"),), config, isolated=isolated)
    except RewardError as error:
        return str(error)
    if verdict.num_passed:
        return None
    return "a program that prints 1 did not do so; are the limits of reward.code too small for an interpreter?"


def _value_at(row: Mapping[str, Any], field: str) -> Any:
    """The column, or what dots lead to in it.

    Raises:
        NoTestsError: there is no such thing.
    """
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise NoTestsError(f"the row has no {name!r}; it has {', '.join(row)}")
        value = value[name]
    return value
