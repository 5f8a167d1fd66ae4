"""What prompt groups tell by themselves."""

from __future__ import annotations

import dataclasses

from controller_fakes import FakeClock, output

from rlserve.controller.group_metrics import group_metrics
from rlserve.controller.observation import RolloutRates
from rlserve.engine.requests.request import FinishReason
from rlserve.rollout.groups import GreedyAnswer, PromptGroup, ScoredGroup


def scored(position: int, reason: FinishReason, rewards: tuple[float, ...]) -> ScoredGroup:
    group = PromptGroup(
        id=f"0:{position}", position=position, row=position, prompt_text="1+1=", prompt_token_ids=(1, 2), answer="2"
    )
    return ScoredGroup(
        group=group,
        output=output(group.id, reason, num_samples=len(rewards)),
        rewards=rewards,
        attempt=0,
    )


def test_shares_of_cut_answers_and_of_groups_with_equal_rewards() -> None:
    groups = [
        scored(0, FinishReason.LENGTH, (1.0, 1.0, 1.0)),
        scored(1, FinishReason.STOP, (0.0, 0.0, 0.5)),
        scored(2, FinishReason.STOP, (0.0, 0.0, 0.0)),
        scored(3, FinishReason.STOP, (0.0, 1.0, 0.0)),
    ]
    assert group_metrics(groups) == {"response_length/clip_ratio": 0.25, "frac_reward_zero_std": 0.5}


def test_one_answer_a_prompt_cannot_be_compared() -> None:
    assert group_metrics([scored(0, FinishReason.LENGTH, (1.0,))]) == {"response_length/clip_ratio": 1.0}


def test_an_answer_is_compared_with_the_greedy_one() -> None:
    greedy = [GreedyAnswer(reward=reward, num_tokens=3, finish_reason="stop") for reward in (1.0, 0.5)]
    groups = [dataclasses.replace(scored(0, FinishReason.STOP, (1.0,)), greedy=each) for each in greedy]
    assert group_metrics(groups) == {
        "response_length/clip_ratio": 0.0,
        "frac_reward_zero_std": 0.5,
        "rollout/greedy_score/mean": 0.75,
    }


def test_busy_share_is_of_all_replicas_and_never_above_one() -> None:
    clock = FakeClock(10.0)
    rates = RolloutRates(clock)
    assert rates.update(num_tokens=100, busy_s=1.0, num_replicas=2) == {}
    clock.now_s = 14.0
    assert rates.update(num_tokens=300, busy_s=3.0, num_replicas=2) == {
        "rollout/tokens_per_s": 50.0,
        "rollout/busy_share": 0.25,
    }
    clock.now_s = 15.0
    assert rates.update(num_tokens=300, busy_s=9.0, num_replicas=2)["rollout/busy_share"] == 1.0
