"""Running a program against its tests."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from rlserve.rollout.rewards.code.confined import ConfinedProgram, Program
from rlserve.rollout.rewards.code.limits import End, Outcome
from rlserve.rollout.rewards.code.tests_of_row import Asserts, InputOutput, Tests
from rlserve.rollout.rewards.config import CodeRewardConfig

_HERE = Path(__file__).parent
_BOTH_SIDES = {
    name: (_HERE / name).read_text(encoding="utf-8") for name in ("plain_data.py", "answering.py", "examiner.py")
}
_START = """\
import sys
sys.path.append(".")
import plain_data, {side}
{side}.main(plain_data.encode, plain_data.decode)
"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a program did."""

    num_passed: int
    num_tests: int
    timed_out: bool
    """It was ended since its time was over, at least once."""


def examine(text: str, tests: Tests, config: CodeRewardConfig, *, isolated: bool) -> Verdict:
    """Run the program ``text`` against ``tests``; without partial credit only as far as they pass.

    Raises:
        RewardError: it could not be run as it should.
    """
    if isinstance(tests, Asserts):
        return _examine_calls(text, tests, config, isolated=isolated)
    num_passed, timed_out = 0, False
    for test in tests:
        outcome = _run(text, test, config, isolated=isolated)
        timed_out |= outcome.end is End.WALL_TIME
        if outcome.end is End.EXIT and outcome.exit_code == 0 and _lines(outcome.output) == _lines(test.output):
            num_passed += 1
        elif not config.partial_credit:
            break
    return Verdict(num_passed=num_passed, num_tests=len(tests), timed_out=timed_out)


def _run(text: str, test: InputOutput, config: CodeRewardConfig, *, isolated: bool) -> Outcome:
    program = Program(files={"answer.py": text}, arguments=["answer.py"], stdin=test.input)
    with ConfinedProgram(program, config, isolated=isolated) as running:
        return running.wait()


def _lines(text: bytes | str) -> list[str]:
    """Lines without the blanks at their ends, and without empty ones at the end."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
    return "\n".join(line.rstrip() for line in decoded.splitlines()).rstrip().split("\n")


def _examine_calls(text: str, tests: Asserts, config: CodeRewardConfig, *, isolated: bool) -> Verdict:
    """Two confinements: one has the program, one the tests, and calls and replies are all that they exchange."""
    with contextlib.ExitStack() as stack:
        calls_out, calls_in = _pipe(stack)
        replies_out, replies_in = _pipe(stack)
        answering = Program(
            files={**_BOTH_SIDES, "answer.py": text},
            arguments=["-c", _START.format(side="answering"), str(calls_out), str(replies_in)],
            passed_fds=(calls_out, replies_in),
        )
        examining = Program(
            files={**_BOTH_SIDES, "tests.json": json.dumps(tests.texts)},
            arguments=[
                *("-c", _START.format(side="examiner")),
                *map(str, (calls_in, replies_out, config.output_bytes)),
            ],
            passed_fds=(calls_in, replies_out),
        )
        with (
            ConfinedProgram(answering, config, isolated=isolated),
            ConfinedProgram(examining, config, isolated=isolated) as examiner,
        ):
            stack.close()  # a side that ends must be seen to have ended
            outcome = examiner.wait()
    num_passed, num_tests = outcome.output.count(b"1"), len(tests.texts)
    return Verdict(num_passed=num_passed, num_tests=num_tests, timed_out=outcome.end is End.WALL_TIME)


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Both ends, closed with the stack."""
    out, into = os.pipe()
    stack.callback(os.close, out)
    stack.callback(os.close, into)
    return out, into
