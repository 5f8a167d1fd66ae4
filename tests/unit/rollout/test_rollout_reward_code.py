"""The code reward: programs are found in answers, run against the tests of their row, and scored."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rollout_code import LIMITS, code_sample, needs_isolation, run, verdict

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Score
from rlserve.rollout.rewards.code import reward as code_reward
from rlserve.rollout.rewards.code.answer_program import program_in
from rlserve.rollout.rewards.code.examination import examine
from rlserve.rollout.rewards.code.limits import End
from rlserve.rollout.rewards.code.plain_data import decode, encode
from rlserve.rollout.rewards.code.reward import CodeReward
from rlserve.rollout.rewards.code.tests_of_row import Asserts, InputOutput, NoTestsError, read_tests
from rlserve.rollout.rewards.config import CodeRewardConfig
from rlserve.rollout.rewards.factory import create_reward

DOUBLE = "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nwhich is it.", "x = 1\n"),
        ("```python\nx = 1\n```\nor better\n```py\nx = 2\n```\n", "x = 2\n"),
        ("```python\nx = 1\n```\nprints\n```text\n1\n```\n", "x = 1\n"),
        ("```\nx = 1\n```\n", "x = 1\n"),
        ("```python\nx = 1  # cut off", "x = 1  # cut off"),
        ("```python\n```", ""),
    ],
)
def test_the_program_in_an_answer(response: str, program: str) -> None:
    assert program_in(response) == program


PAIRS = (InputOutput(input="2", output="4"), InputOutput(input="", output="0"))


@pytest.mark.parametrize(
    ("value", "tests"),
    [
        ("assert f(2) == 4", Asserts(texts=("assert f(2) == 4",))),
        (["assert f(2) == 4", "check(f)"], Asserts(texts=("assert f(2) == 4", "check(f)"))),
        ('["assert f(2) == 4"]', Asserts(texts=("assert f(2) == 4",))),
        ([{"input": "2", "output": "4"}, {"input": "", "output": "0"}], PAIRS),
        ({"inputs": ["2", ""], "outputs": ["4", "0"]}, PAIRS),
        (json.dumps({"inputs": ["2", ""], "outputs": ["4", "0"], "fn_name": None}), PAIRS),
    ],
)
def test_tests_in_the_shapes_that_data_sets_have(value: Any, tests: Any) -> None:
    assert read_tests(value) == tests


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be a list of tests, or an object with inputs and outputs, but is []"),
        (None, "must be a list of tests"),
        ("[]", "must be a list of tests"),
        ({"input": "1", "output": "2"}, "must be a list of tests"),
        ({"inputs": ["1"], "outputs": []}, "must be lists of the same length"),
        ([{"input": 1, "output": "2"}], "must be an assert, or texts under"),
        (["assert f(2) == 4", {"input": "1", "output": "2"}], "must be an assert, or texts under"),
        (["assert f(2 == 4"], "is no Python"),
    ],
)
def test_what_is_no_tests_is_said(value: Any, message: str) -> None:
    with pytest.raises(NoTestsError, match=message.replace("[", r"\[")):
        read_tests(value)


NUMBERS = (None, True, False, 0, -(2**20000), 0.1, float("inf"), 2 + 3j)
OTHERS = ("a\n\udc80", b"\x00", [], (1, [2, (3,)]), {1, 2}, frozenset({(1, 2)}), {"a": {1: [None]}, (1, 2): "b"})


@pytest.mark.parametrize("value", [*NUMBERS, *OTHERS], ids=lambda value: type(value).__name__)
def test_plain_data_come_back_as_they_were(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_what_is_no_plain_data_is_refused() -> None:
    class Odd(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert type(decode(encode(Odd(3)))) is int
    with pytest.raises(TypeError, match="a object is no plain data"):
        encode([object()])
    for lie in ([1], 3, {"int": "0x1", "list": []}, {"exec": "x"}, {"list": [[]]}):
        with pytest.raises(ValueError, match="no encoded value"):
            decode(lie)


def test_asserts_call_the_program_where_it_is() -> None:
    needs_isolation()
    tests = [
        "assert double(2) == 4",
        "import math\nassert math.isclose(double(0.1), 0.2)",
        "def check(candidate):\n    assert candidate([1, (2,)]) == [1, (2,), 1, (2,)]\ncheck(double)",
        "assert sorted(double(x) for x in (3, 1)) == [2, 6]",
        "items = [3, 1]\norder(items)\nassert items == [1, 3]",
        "try:\n    double()\nexcept TypeError:\n    pass\nelse:\n    raise AssertionError",
        "assert order({'b': 2, 'a': 1}) == ['a', 'b']",
    ]
    program = (
        DOUBLE + "def order(items):\n    if isinstance(items, list):\n        items.sort()\n    return sorted(items)\n"
    )
    found = verdict(program, tests)
    assert (found.num_passed, found.num_tests, found.timed_out) == (7, 7, False)
    assert verdict(DOUBLE, tests, replace(LIMITS, partial_credit=True)).num_passed == 5
    assert verdict("def double(x): return 2 * x +", tests).num_passed == 0


def test_inputs_are_read_and_outputs_compared_line_by_line() -> None:
    needs_isolation()
    tests = [{"input": "2\n", "output": "4\nend"}, {"input": "3", "output": "6\nend\n"}, {"input": "4", "output": "9"}]
    program = "n = int(input())\nprint(2 * n, '')\nprint('end')\nprint()"
    assert verdict(program, tests).num_passed == 2
    assert verdict(program + "\nraise SystemExit(1)", tests).num_passed == 0
    partial = replace(LIMITS, partial_credit=True)
    assert verdict(program, tests[::-1]).num_passed == 0, "it stops at the first that fails"
    assert verdict(program, tests[::-1], partial).num_passed == 2


def test_limits_end_a_program_and_the_outcome_says_which() -> None:
    needs_isolation()
    assert run("print(1)").output == b"1\n"
    assert run("raise SystemExit(3)").exit_code == 3
    assert run("import os; os.kill(os.getpid(), 15)").signal == 15
    slow = run("print('x', flush=True)\nimport time; time.sleep(1000)", replace(LIMITS, wall_time_s=0.5))
    assert (slow.end, slow.output) == (End.WALL_TIME, b"x\n")
    assert run("while True: pass").signal == 9
    endless = run("while True: print('x' * 1000)")
    assert (endless.end, len(endless.output)) == (End.OUTPUT, LIMITS.output_bytes)
    assert run("print(len(open(0).read()))", stdin="é" * 300_000).output == b"300000\n"


def test_scores_and_their_parts() -> None:
    needs_isolation()
    reward = create_reward(RewardConfig(function="builtin:code", code=LIMITS))
    assert isinstance(reward, CodeReward)
    tests = ["assert double(2) == 4", "assert double(3) == 7"]
    right = code_sample(f"```python\n{DOUBLE}```", tests=tests[:1])
    half = code_sample(DOUBLE, tests=tests)
    broken = code_sample(DOUBLE, tests=[])
    other = code_sample(DOUBLE, checks=tests)
    scored = reward.score([right, half, broken, other])
    assert scored[:2] == [
        Score(value=1.0, parts={"tests_passed": 1.0, "timed_out": 0.0}),
        Score(value=0.0, parts={"tests_passed": 0.5, "timed_out": 0.0}),
    ]
    assert scored[2].error is not None
    assert scored[2].error.startswith("reward builtin:code on prompt 0:5/1: reward.code.tests_field=tests: must be")
    assert scored[3].error is not None
    assert "the row has no 'tests'; it has checks" in scored[3].error
    reward.close()
    nested = CodeReward(replace(LIMITS, tests_field="info.tests", partial_credit=True))
    (score,) = nested.score([code_sample(DOUBLE, info={"tests": tests})])
    assert score.value == 0.5
    nested.close()


def test_where_programs_cannot_be_shut_off_they_are_not_run_unless_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def examine_if_not_isolated(*arguments: Any, isolated: bool) -> Any:
        if isolated:
            raise RewardError("a program could not be shut off: unshare(0x10000000): Operation not permitted")
        return examine(*arguments, isolated=False)

    monkeypatch.setattr(code_reward, "examine", examine_if_not_isolated)
    with pytest.raises(RewardError, match=r"Operation not permitted\. Allow namespaces.*isolation=if_possible"):
        CodeReward(LIMITS)
    CodeReward(replace(LIMITS, isolation="if_possible")).close()
    (message,) = caplog.messages
    assert "programs of answers run with this user's rights" in message
    with pytest.raises(RewardError, match=r"^reward\.function=builtin:code: a program that prints 1 did not do so"):
        CodeReward(replace(LIMITS, isolation="if_possible", memory_bytes=1 << 20))


def test_without_namespaces_limits_still_hold() -> None:
    assert verdict(DOUBLE, ["assert double(2) == 4"], isolated=False).num_passed == 1
    assert verdict("print(input())", [{"input": "a", "output": "a"}], isolated=False).num_passed == 1
    assert run("while True: print('x' * 1000)", isolated=False).end is End.OUTPUT
    assert run("x = bytearray(1 << 30)", isolated=False).exit_code == 1
    escaped = "import os, time\nif os.fork() == 0:\n    os.setsid()\nprint('x', flush=True)\ntime.sleep(1000)"
    assert run(escaped, replace(LIMITS, wall_time_s=1.0), isolated=False).end is End.WALL_TIME


def test_limits_too_small_for_an_interpreter_are_found_at_the_start() -> None:
    needs_isolation()
    with pytest.raises(
        RewardError, match=r"a program that prints 1 did not do so; are the limits of reward\.code too small"
    ):
        CodeReward(replace(LIMITS, memory_bytes=1 << 20))
    assert CodeRewardConfig().isolation == "required"
