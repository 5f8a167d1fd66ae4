"""Several rewards: what is trained on is their weighted sum, and each can be seen by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from model_folders import write_model
from test_rollout_reward_function import make_sample

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Reward, RewardSample, Score
from rlserve.rollout.rewards.config import RewardPartConfig
from rlserve.rollout.rewards.factory import check_reward_model, create_reward
from rlserve.rollout.rewards.probe import RewardProbe
from rlserve.rollout.rewards.weighted_sum import Term, WeightedSum


class Fixed(Reward):
    """Gives what a function makes of the response."""

    def __init__(self, score: Callable[[str], Score]) -> None:
        self._score = score

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._score(sample.response) for sample in samples]


def value_of(response: str) -> Score:
    """``"-"`` leaves the answer out, ``"?"`` is an error, the rest is a number."""
    return {"-": Score(), "?": Score(error="cannot be read")}.get(response) or Score(value=float(response))


def sums(*responses: str, weight: float = 1.0) -> list[Score]:
    """Of a reward that is the response and one that is always 1 with weight 0.5; one prompt."""
    terms = {
        "read": Term(reward=Fixed(value_of), weight=weight),
        "one": Term(reward=Fixed(lambda _: Score(value=1.0, parts={"length": 3.0})), weight=0.5),
    }
    return WeightedSum(terms).score([make_sample(response) for response in responses])


def test_the_sum_is_weighted_and_each_reward_is_a_part() -> None:
    assert sums("4", "0", weight=0.25) == [
        Score(value=1.5, parts={"read": 4.0, "one": 1.0, "one/length": 3.0}),
        Score(value=0.5, parts={"read": 0.0, "one": 1.0, "one/length": 3.0}),
    ]
    assert [score.value for score in sums("4", weight=0.0)] == [0.5]


def test_none_for_all_answers_to_a_prompt_is_not_counted_and_for_some_leaves_those_out() -> None:
    assert [score.value for score in sums("-", "-")] == [0.5, 0.5]
    assert [score.value for score in sums("-", "1")] == [None, 1.5]
    left_out, _ = sums("-", "1")
    assert (left_out.error, left_out.parts) == (None, {"one": 1.0, "one/length": 3.0})
    read = WeightedSum({"read": Term(reward=Fixed(value_of), weight=1.0)})
    other_prompt = replace(make_sample("1"), prompt_token_ids=(9,))
    assert [score.value for score in read.score([make_sample("-"), other_prompt])] == [None, 1.0]


def test_an_error_names_the_reward_and_is_no_other_answers() -> None:
    failed, scored = sums("?", "1")
    assert failed.error == "reward.parts.read: cannot be read"
    assert scored.value == 1.5
    (infinite,) = sums("1e308", weight=1e10)
    assert infinite.error == "reward.parts: the weighted sum is not finite: read 1e+308, one 1"
    assert not math.isnan(infinite.value or 0.0)


def two_functions(
    folder: Path, *, second: str = "def score(sample): return {'score': len(sample.response), 'kind': 7}"
) -> RewardConfig:
    (folder / "right.py").write_text("def score(sample): return sample.response == sample.answer")
    (folder / "length.py").write_text(second)
    parts = {
        "right": RewardPartConfig(function=f"{folder}/right.py:score"),
        "length": RewardPartConfig(function=f"{folder}/length.py:score", weight=-0.5),
    }
    return RewardConfig(parts=parts)


def test_several_functions_by_configuration_are_tried_together(tmp_path: Path) -> None:
    config = two_functions(tmp_path)
    expected = Score(value=0.5, parts={"right": 1.0, "length": 1.0, "length/kind": 7.0})
    assert create_reward(config).score([make_sample("2")]) == [expected]
    with RewardProbe(config, tmp_path / "reward.log") as probe:
        probe.load()
        assert probe.try_on([make_sample("2")], samples_per_prompt=4) == expected


def test_a_part_that_cannot_be_loaded_or_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RewardError, match=r"^reward\.parts\.length: reward\.function=.*cannot be imported: ZeroDivision"
    ):
        create_reward(two_functions(tmp_path, second="1 / 0"))
    config = two_functions(tmp_path, second="def score(sample): return 'x'")
    (score,) = create_reward(config).score([make_sample("2")])
    assert score.error is not None
    assert score.error.startswith(f"reward.parts.length: reward {tmp_path}/length.py:score must return a finite number")
    dead = two_functions(tmp_path, second="import os; os._exit(3)")
    with RewardProbe(dead, None) as probe, pytest.raises(RewardError, match=r"^reward\.parts=\{right, length\}: while"):
        probe.load()


def test_models_among_the_parts_are_looked_at_and_not_tried(tmp_path: Path) -> None:
    config = two_functions(tmp_path)
    judge = RewardPartConfig(model_path=str(write_model(tmp_path / "model")))
    mixed = replace(config, parts={**config.parts, "judge": judge})
    assert mixed.without_models == config
    assert (config.num_processes, mixed.num_processes) == (2, 1)
    with pytest.raises(RewardError, match=r"^reward\.parts\.judge: reward\.model_path=.*must have one label"):
        check_reward_model(mixed, policy_has_template=False)
    assert RewardConfig(parts={"judge": judge}).without_models is None
    assert RewardConfig(model_path="a/b").without_models is None
