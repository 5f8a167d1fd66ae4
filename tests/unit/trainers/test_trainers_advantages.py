"""Advantages against a naive loop over samples and tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import experience_of

from rlserve.trainers import PPOConfig
from rlserve.trainers.algorithms.advantages.gae import generalised_advantages, rewards_to_go
from rlserve.trainers.algorithms.advantages.token_rewards import token_rewards
from rlserve.trainers.algorithms.advantages.whitening import whiten


def naive_advantages(rewards: list[float], values: list[float], gamma: float, gae_lambda: float) -> list[float]:
    """Equation 16 written out: the discounted sum of all later temporal differences."""
    following = [*values[1:], 0.0]
    deltas = [reward + gamma * after - value for reward, after, value in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * gae_lambda) ** (later - now) * deltas[later] for later in range(now, len(deltas)))
        for now in range(len(deltas))
    ]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_generalised_advantages_equal_the_sum_written_out(
    lengths: list[int], gamma: float, gae_lambda: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=sum(lengths)), rng.normal(size=sum(lengths)).astype(np.float32)
    advantages, returns = generalised_advantages(
        rewards, values, np.array(lengths, dtype=np.int32), gamma=gamma, gae_lambda=gae_lambda
    )
    ends = np.cumsum(lengths)[:-1]
    expected = [
        advantage
        for sample_rewards, sample_values in zip(np.split(rewards, ends), np.split(values, ends), strict=True)
        for advantage in naive_advantages(list(sample_rewards), list(map(float, sample_values)), gamma, gae_lambda)
    ]
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    np.testing.assert_allclose(returns, advantages + values, atol=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=50))
def test_whitened_advantages_have_mean_0_deviation_1_and_keep_their_order(numbers: list[float]) -> None:
    advantages = np.array(numbers)
    whitened = whiten(advantages)
    assert whitened.mean() == pytest.approx(0.0, abs=1e-5)  # equal numbers: their mean is off by one bit
    if advantages.std() > 1e-3:
        assert whitened.std() == pytest.approx(1.0, rel=1e-4)
    assert (np.diff(whitened[np.argsort(advantages)]) >= 0).all()


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        ("k1", [-0.1, 1.0, 0.0, -0.2, 2.2]),
        ("k2", [-0.05, 1.0, 0.0, -0.2, 1.8]),
        ("k3", [-0.03679, 1.0, 0.0, -0.11353, 1.56109]),
    ],
)
def test_the_reward_goes_to_the_last_token_and_the_penalty_to_every_one(estimate: Any, expected: list[float]) -> None:
    experience = experience_of(
        rewards=[1.0, 2.0],
        lengths=[2, 3],
        log_probs=np.array([-1.0, -2.0, -1.0, -1.0, -3.0], dtype=np.float32),
        reference_log_probs=np.array([-2.0, -2.0, -1.0, -3.0, -1.0], dtype=np.float32),
    )
    rewards = token_rewards(experience, PPOConfig(kl_coefficient=0.1, kl_penalty=estimate))
    np.testing.assert_allclose(rewards, expected, atol=1e-5)


def test_without_a_coefficient_there_is_no_penalty() -> None:
    rewards = token_rewards(experience_of(rewards=[1.0, 2.0], lengths=[2, 1]), PPOConfig())
    np.testing.assert_array_equal(rewards, [0.0, 1.0, 2.0])


def test_a_return_counts_the_value_of_a_state_where_the_episode_does_not_end() -> None:
    advantages, returns = generalised_advantages(
        np.array([0.0, 1.0, 2.0]),
        np.array([0.5, 0.25, 0.0], dtype=np.float32),
        np.array([2, 1], dtype=np.int32),
        gamma=0.5,
        gae_lambda=1.0,
        final_values=np.array([4.0, 0.0], dtype=np.float32),
    )
    np.testing.assert_allclose(returns, [0.5 * (1.0 + 0.5 * 4.0), 1.0 + 0.5 * 4.0, 2.0])
    np.testing.assert_allclose(advantages, returns - [0.5, 0.25, 0.0])


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=50), st.floats(0, 10))
def test_whitening_never_blows_up_more_than_there_is_to_learn(numbers: list[float], max_spread: float) -> None:
    advantages = np.array(numbers)
    bounded = whiten(advantages, max_spread)
    assert bounded.std() <= min(1.0, max_spread / (advantages.std() + 1e-8)) * (1 + 1e-9)
    if max_spread > advantages.std() + 1e-7:
        np.testing.assert_array_equal(bounded, whiten(advantages))


def test_a_lone_token_gets_no_advantage() -> None:
    assert whiten(np.array([3.0])).tolist() == [0.0]


def test_rewards_to_go_are_discounted_within_a_sample() -> None:
    found = rewards_to_go(np.array([0.0, 0.0, 1.0, 2.0]), np.array([3, 1], dtype=np.int32), gamma=0.5)
    assert found.tolist() == [0.25, 0.5, 1.0, 2.0]
