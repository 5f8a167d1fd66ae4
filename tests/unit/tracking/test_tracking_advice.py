from __future__ import annotations

import logging

import pytest

from rlserve.tracking import names
from rlserve.tracking.advice import Advice, AdviceContext, AdviceSink, StepMetrics, advise, read_context

CONTEXT = AdviceContext(run_name="r1", max_tokens=4, is_restricted=True)
HEALTHY = {
    names.REWARD: 0.4,
    "critic/score/min": 0.0,
    "critic/score/max": 1.0,
    names.CLIP_RATIO: 0.9,
    names.FRAC_REWARD_ZERO_STD: 0.9,
    names.POLICY_GRAD_NORM: 1e-4,
    names.KL: -0.0009,
}


def steps(*changes: StepMetrics) -> list[StepMetrics]:
    return [{**HEALTHY, **change, "step": number} for number, change in enumerate(changes, start=5)]


def kinds(found: tuple[Advice, ...]) -> list[str]:
    return [advice.kind for advice in found]


def test_a_run_that_may_learn_is_left_alone() -> None:
    assert advise(steps({}, {}, {}), CONTEXT) == ()
    assert advise([{"step": 1}, {"step": 2}, {"step": 3}], CONTEXT) == (), "nothing follows from what is not there"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({names.CLIP_RATIO: 1.0}, "all answers cut", "rollout.max_tokens=4"),
        ({names.FRAC_REWARD_ZERO_STD: 1.0}, "equal rewards", "frac_reward_zero_std = 1"),
        (
            {names.FRAC_REWARD_ZERO_STD: 1.0, "critic/score/max": 0.0},
            "equal rewards",
            "every answer had the reward 0, so",
        ),
        ({names.POLICY_GRAD_NORM: 0.0}, "no gradient", "actor/grad_norm"),
        ({names.KL: -0.002}, "negative KL", "critic/kl_k3"),
    ],
)
def test_three_steps_in_a_row_are_spoken_of(change: StepMetrics, kind: str, words: str) -> None:
    found = advise(steps(change, change, change), CONTEXT)
    assert kinds(found) == [kind]
    assert found[0].message.startswith("steps 5 to 7: ")
    assert words in found[0].message
    assert advise(steps(change, change), CONTEXT) == ()
    assert advise(steps(change, {}, change), CONTEXT) == ()
    assert kinds(advise(steps({}, change, change, change), CONTEXT)) == [kind], "only the last ones count"


def test_answers_of_a_paced_run_are_as_long_as_its_load_says() -> None:
    rollout = {"max_tokens": 4, "top_k": 0, "top_p": 1.0}
    cut = {names.CLIP_RATIO: 1.0}
    for type_name, found in (("paced-H100", []), ("H100", ["all answers cut"])):
        context = read_context("r1", {"rollout": rollout, "pool": {"slots": [{"type": type_name, "count": 2}]}})
        assert kinds(advise(steps(cut, cut, cut), context)) == found


def test_where_rewards_are_equal_a_gradient_of_zero_is_no_news() -> None:
    change = {names.FRAC_REWARD_ZERO_STD: 1.0, names.POLICY_GRAD_NORM: 0.0}
    assert kinds(advise(steps(change, change, change), CONTEXT)) == ["equal rewards"]


def test_a_negative_kl_of_draws_from_the_whole_distribution_is_chance() -> None:
    change = {names.KL: -0.1}
    assert advise(steps(change, change, change), AdviceContext(is_restricted=False)) == ()


def test_each_kind_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = AdviceSink(CONTEXT)
    for step in range(1, 10):
        sink.log(step, {names.HELD_OUT: 0.5})
        sink.log(step, {**HEALTHY, names.CLIP_RATIO: 1.0, names.KL: -0.1 if step > 4 else 0.0})
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert warnings[0].startswith("steps 1 to 3: every answer was cut")
    assert "rlserve show r1 --step 3" in warnings[0]
    assert warnings[1].startswith("steps 5 to 7: critic/kl")


def test_context_from_a_configuration() -> None:
    rollout = {"max_tokens": 16, "top_k": 0, "top_p": 1.0}
    assert read_context("r", {"rollout": rollout}) == AdviceContext(run_name="r", max_tokens=16)
    assert read_context("r", {"rollout": {**rollout, "top_k": 2}}).is_restricted
    assert read_context("r", {"rollout": {**rollout, "top_p": 0.9}}).is_restricted
    assert not read_context("r", {"rollout": {**rollout, "top_k": -1}}).is_restricted
