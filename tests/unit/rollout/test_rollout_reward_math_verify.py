"""Mathematical equivalence by math-verify: right answers in any form, and nothing that hangs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_rollout_reward_function import make_sample

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards import math_verify
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.config import MathVerifyRewardConfig
from rlserve.rollout.rewards.factory import create_reward
from rlserve.rollout.rewards.math_verify import MathVerifyReward

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed: pip install 'rlserve[math]'"
)


@pytest.fixture(scope="module")
def reward() -> Iterator[MathVerifyReward]:
    made = create_reward(RewardConfig(function="builtin:math_verify"))
    assert isinstance(made, MathVerifyReward)
    yield made
    made.close()


def sample(response: str, answer: object) -> RewardSample:
    return replace(make_sample(response), answer=answer)  # type: ignore[arg-type]


@needs_math_verify
@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        (r"So it is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", 1.0),
        (r"So it is $\boxed{0.5}$.", r"\frac{1}{2}", 1.0),
        (r"So it is $\boxed{\frac{1}{3}}$.", r"\frac{1}{2}", 0.0),
        (r"First $\boxed{3}$ was my guess, then $x = 7$.", "3", 1.0),
        (r"$\boxed{(x+1)^2}$", r"x^2 + 2x + 1", 1.0),
        (r"$\boxed{\{3, 1\}}$", r"\{1, 3\}", 1.0),
        ("The answer is 72.", "She sold 48 / 2 = 24, so 48 + 24 = 72 in all.\n#### 72", 1.0),
        ("The answer is 71.", "She sold 48 / 2 = 24, so 48 + 24 = 72 in all.\n#### 72", 0.0),
        ("I do not know.", "72", 0.0),
    ],
)
def test_equivalence(reward: MathVerifyReward, response: str, answer: str, value: float) -> None:
    (score,) = reward.score([sample(response, answer)])
    assert (score.error, score.value) == (None, value)
    assert score.parts == {"answer_found": float("know" not in response), "timed_out": 0.0}


@needs_math_verify
def test_a_reference_that_is_no_mathematics_is_an_error(reward: MathVerifyReward) -> None:
    no_text, none = reward.score([sample("1", ["1"]), sample("1", "")])
    assert (
        no_text.error == "reward builtin:math_verify on prompt 0:5/1: the reference answer must be text, but is ['1']"
    )
    assert none.error is not None
    assert "the reference answer cannot be read as mathematics: ''" in none.error


@needs_math_verify
def test_an_answer_that_takes_for_ever_is_wrong_and_holds_up_no_other() -> None:
    reward = MathVerifyReward(MathVerifyRewardConfig(timeout_s=2.0))
    endless = sample(r"$\boxed{9^{9^{9}}}$", "3")  # 370 million digits
    before, slow, after = reward.score([sample("3", "3"), endless, sample("3", "3")])
    reward.close()
    assert slow == Score(value=0.0, parts={"timed_out": 1.0})
    assert before == after == Score(value=1.0, parts={"answer_found": 1.0, "timed_out": 0.0})


def test_where_it_is_not_installed_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify, "find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r"builtin:math_verify needs math-verify: pip install 'rlserve\[math\]'"):
        create_reward(RewardConfig(function="builtin:math_verify"))
