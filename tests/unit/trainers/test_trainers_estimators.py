"""Advantages of the algorithms without a critic, against loops over answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from policy_samples import experience_of, rows
from trainer_samples import random_batch

from rlserve.errors import ConfigurationError
from rlserve.trainers import (
    AlgorithmConfig,
    GRPOConfig,
    OPOConfig,
    PPOConfig,
    ReinforcePlusPlusBaselineConfig,
    ReinforcePlusPlusConfig,
    ReMaxConfig,
    RLOOConfig,
    TorchTrainerConfig,
    create_trainer,
)
from rlserve.trainers.algorithms.advantages.token_rewards import overlong_share, token_rewards
from rlserve.trainers.algorithms.base import Experience
from rlserve.trainers.algorithms.factory import create_algorithm
from rlserve.trainers.batch import GreedyAnswers

Rows = list[np.ndarray]
LENGTHS = [2, 5, 1, 3, 4, 2]
GROUPS = [0, 0, 1, 0, 1, 2]
"""The last answer is alone."""


def experience(seed: int = 0) -> Experience:
    rng = np.random.default_rng(seed)
    policy, reference = rng.normal(size=(2, sum(LENGTHS))).astype(np.float32)
    return experience_of(
        rewards=rng.normal(size=len(LENGTHS)),
        lengths=LENGTHS,
        group_index=np.array(GROUPS, dtype=np.int32),
        log_probs=policy,
        reference_log_probs=reference,
        greedy_answers=GREEDY,
    )


def members(index: int) -> list[int]:
    return [other for other, group in enumerate(GROUPS) if group == GROUPS[index]]


def spread(per_answer: list[float]) -> Rows:
    return [np.full(length, number) for length, number in zip(LENGTHS, per_answer, strict=True)]


def normalised(advantages: Rows) -> Rows:
    """To mean 0 and deviation 1 over all tokens."""
    flat = np.concatenate(advantages)
    return [(row - flat.mean()) / np.sqrt(((flat - flat.mean()) ** 2).mean()) for row in advantages]


def rloo(penalised: Rows) -> Rows:
    returns = [row.sum() for row in penalised]
    others = [[returns[other] for other in members(index) if other != index] for index in range(len(returns))]
    return spread([mine - np.mean(rest) if rest else 0.0 for mine, rest in zip(returns, others, strict=True)])


def opo(penalised: Rows) -> Rows:
    returns = [row.sum() for row in penalised]
    return spread(
        [
            mine - sum(LENGTHS[k] * returns[k] for k in members(index)) / sum(LENGTHS[k] for k in members(index))
            for index, mine in enumerate(returns)
        ]
    )


GREEDY = GreedyAnswers(
    rewards=np.array([0.4, 0.4, -0.3, 0.4, -0.3, 0.9], dtype=np.float32),
    lengths=np.array([3, 3, 6, 3, 6, 2], dtype=np.int32),
    finish_reasons=("stop", "stop", "length", "stop", "length", "stop"),
)


def remax(penalised: Rows) -> Rows:
    gamma, found = 0.9, []
    for row, baseline in zip(penalised, GREEDY.rewards, strict=True):
        compared = np.append(row[:-1], row[-1] - baseline)
        found.append(
            np.array([sum(gamma ** (k - t) * compared[k] for k in range(t, len(row))) for t in range(len(row))])
        )
    return found


def grpo(penalised: Rows) -> Rows:
    returns = [row.sum() for row in penalised]
    found = []
    for index, mine in enumerate(returns):
        of_group = [returns[k] for k in members(index)]
        found.append((mine - np.mean(of_group)) / (np.std(of_group, ddof=1) + 1e-6) if len(of_group) > 1 else 0.0)
    return spread(found)


def reinforce_plus_plus(penalised: Rows) -> Rows:
    gamma = 0.9
    return normalised(
        [
            np.array([sum(gamma ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))])
            for row in penalised
        ]
    )


def reinforce_plus_plus_baseline(penalised: Rows) -> Rows:
    returns = [row.sum() for row in penalised]
    return normalised(spread([mine - np.mean([returns[k] for k in members(i)]) for i, mine in enumerate(returns)]))


CASES: list[tuple[AlgorithmConfig, Callable[[Rows], Rows]]] = [
    (GRPOConfig(kl_coefficient=0.3), grpo),
    (RLOOConfig(kl_coefficient=0.3), rloo),
    (ReMaxConfig(kl_coefficient=0.3, gamma=0.9), remax),
    (OPOConfig(kl_coefficient=0.3), opo),
    (ReinforcePlusPlusConfig(kl_coefficient=0.3, gamma=0.9), reinforce_plus_plus),
    (ReinforcePlusPlusBaselineConfig(kl_coefficient=0.3), reinforce_plus_plus_baseline),
]


@pytest.mark.parametrize(("config", "closed_form"), CASES, ids=[config.name for config, _ in CASES])
def test_advantages_are_those_of_the_closed_form(config: AlgorithmConfig, closed_form: Callable[[Rows], Rows]) -> None:
    seen = experience()
    assert seen.log_probs is not None
    assert seen.reference_log_probs is not None
    penalised = rows(-0.3 * (seen.log_probs.astype(float) - seen.reference_log_probs), LENGTHS)
    for row, reward in zip(penalised, seen.rewards, strict=True):
        row[-1] += reward
    credit = create_algorithm(config).credit(seen)
    np.testing.assert_allclose(credit.policy_advantages, np.concatenate(closed_form(penalised)), atol=1e-6)
    np.testing.assert_allclose(credit.rewards, np.concatenate(penalised), atol=1e-12)
    assert credit.returns is None
    assert credit.is_kept is None


def test_penalties_are_taken_off_the_greedy_answer_of_remax_too() -> None:
    """A sampled answer that was cut as the greedy one was is neither better nor worse for it."""
    seen = dataclasses.replace(experience(), finish_reasons=GREEDY.finish_reasons)
    plain, penalised = (
        create_algorithm(ReMaxConfig(missing_eos_penalty=penalty)).credit(seen) for penalty in (0.0, 2.0)
    )
    np.testing.assert_allclose(penalised.policy_advantages, plain.policy_advantages)
    only_greedy = dataclasses.replace(seen, finish_reasons=("stop",) * len(LENGTHS))
    found = create_algorithm(ReMaxConfig(missing_eos_penalty=2.0)).credit(only_greedy).advantages
    np.testing.assert_allclose(found - plain.advantages, np.repeat([0.0, 0.0, 2.0, 0.0, 2.0, 0.0], LENGTHS))


def test_the_baseline_of_opo_is_the_one_of_least_variance_where_gradients_grow_with_length() -> None:
    """Of independent unit gradients per token, the squared norm of an answer's is its length in the mean."""
    seen = dataclasses.replace(experience(), group_index=np.zeros(len(LENGTHS), dtype=np.int32))
    advantages = create_algorithm(OPOConfig()).credit(seen).advantages
    found = float(seen.rewards[0] - advantages[0])

    def variance(baseline: float) -> float:
        return sum(length * (reward - baseline) ** 2 for length, reward in zip(LENGTHS, seen.rewards, strict=True))

    assert variance(found) < min(variance(found - 0.01), variance(found + 0.01))


@pytest.mark.parametrize(
    "config", [config for config, _ in CASES if config.needs.groups], ids=lambda config: config.name
)
def test_groups_of_equal_rewards_teach_nothing(config: AlgorithmConfig) -> None:
    seen = dataclasses.replace(
        experience(), rewards=np.array([0.1, 0.1, 0.7, 0.1, 0.7, 3.0], dtype=np.float32), log_probs=None
    )
    credit = create_algorithm(dataclasses.replace(config, kl_coefficient=0.0)).credit(seen)
    np.testing.assert_allclose(credit.advantages, 0.0, atol=1e-9)


def test_answers_that_were_cut_are_left_out_of_the_losses_alone() -> None:
    seen = dataclasses.replace(experience(), finish_reasons=("stop", "length", "stop", "stop", "length", "stop"))
    masked = create_algorithm(GRPOConfig(mask_truncated_completions=True)).credit(seen)
    plain = create_algorithm(GRPOConfig()).credit(seen)
    np.testing.assert_array_equal(masked.policy_advantages, plain.policy_advantages)
    assert masked.is_kept is not None
    assert [bool(row.all()) for row in rows(masked.is_kept, LENGTHS)] == [True, False, True, True, False, True]
    assert [bool(row.any()) for row in rows(masked.is_kept, LENGTHS)] == [True, False, True, True, False, True]


def test_a_step_on_answers_that_were_all_cut_moves_nothing(model_path: str) -> None:
    batch = random_batch(0)
    batch = dataclasses.replace(batch, finish_reasons=("length",) * batch.num_samples)
    norms = [
        create_trainer(
            TorchTrainerConfig(), GRPOConfig(mask_truncated_completions=masks), model_path=model_path, seed=0
        ).step(batch)["actor/grad_norm"]
        for masks in (True, False)
    ]
    assert norms[0] == 0.0
    assert norms[1] > 0.001


def test_the_soft_penalty_rises_over_the_buffer() -> None:
    lengths = np.array([1, 80, 85, 90, 100, 120], dtype=np.int32)
    np.testing.assert_allclose(overlong_share(lengths, 100, 20.0), [0.0, 0.0, 0.25, 0.5, 1.0, 1.0])


def test_the_soft_penalty_is_taken_off_the_reward() -> None:
    config = GRPOConfig(overlong_max_length=4, overlong_buffer_share=0.5, overlong_penalty_factor=0.4)
    rewards = token_rewards(experience_of(rewards=[1.0, 1.0, 1.0], lengths=[2, 3, 4]), config)
    np.testing.assert_allclose(rewards, [0, 1, 0, 0, 0.8, 0, 0, 0, 0.6])


def with_turns() -> tuple[Experience, np.ndarray]:
    """Two answers of two turns each, and the rewards of their tokens: 0.5 after the first turn of the first, and what
    is left of the totals at the ends."""
    turns = np.array([0, 0.5, 0, 0.25, 0, 0, 0, -1.0], dtype=np.float32)
    seen = experience_of(rewards=[2.0, 1.0], lengths=[4, 4], turn_rewards=turns, values=np.zeros(8, dtype=np.float32))
    return seen, np.array([0, 0.5, 0, 1.5, 0, 0, 0, 1.0])


def test_rewards_of_turns_are_where_they_were_given_and_add_up_to_the_total() -> None:
    seen, expected = with_turns()
    np.testing.assert_allclose(token_rewards(seen, PPOConfig()), expected)


def test_a_turn_is_credited_with_what_came_after_it() -> None:
    seen, rewards = with_turns()
    gamma, lam = 0.9, 0.8
    advantages = np.array(
        [sum((gamma * lam) ** (k - t) * rewards[k] for k in range(t, 4 * (t // 4) + 4)) for t in range(8)]
    )
    found = create_algorithm(PPOConfig(gamma=gamma, gae_lambda=lam)).credit(seen)
    np.testing.assert_allclose(found.advantages, advantages)
    returns = np.array([sum(gamma ** (k - t) * rewards[k] for k in range(t, 4 * (t // 4) + 4)) for t in range(8)])
    np.testing.assert_allclose(create_algorithm(ReinforcePlusPlusConfig(gamma=gamma)).credit(seen).advantages, returns)


def test_an_answer_is_compared_by_the_sum_of_its_turns() -> None:
    seen, _ = with_turns()
    seen = dataclasses.replace(seen, group_index=np.zeros(2, dtype=np.int32))
    without = dataclasses.replace(seen, turn_rewards=None)
    found = [create_algorithm(RLOOConfig()).credit(each).policy_advantages for each in (seen, without)]
    np.testing.assert_allclose(found[0], found[1])


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_buffer_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="overlong_buffer_share: must be above 0 and at most 1"):
        GRPOConfig(overlong_buffer_share=share)
