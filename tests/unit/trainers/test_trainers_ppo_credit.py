"""What PPO makes of rewards, against its formulas written out sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import experience_of, rows

from rlserve.trainers import PPOConfig
from rlserve.trainers.algorithms.base import Credit, Experience
from rlserve.trainers.algorithms.ppo import PPO


def random_experience(lengths: list[int], seed: int = 0, **columns: Any) -> Experience:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=sum(lengths)).astype(np.float32)
    return experience_of(rng.normal(size=len(lengths)).tolist(), lengths, values=values, **columns)


def credit_of(experience: Experience, **fields: Any) -> Credit:
    return PPO(PPOConfig(**fields)).credit(experience)


def written_out(experience: Experience, lambdas: list[float], gamma: float = 1.0) -> list[float]:
    """GAE of each sample with a lambda of its own, as the sum of equation 16."""
    assert experience.values is not None
    found: list[float] = []
    for reward, values, own in zip(
        experience.rewards, rows(experience.values, experience.lengths.tolist()), lambdas, strict=True
    ):
        steps = len(values)
        after = [*values[1:], 0.0]
        deltas = [(reward if step == steps - 1 else 0.0) + gamma * after[step] - values[step] for step in range(steps)]
        found += [
            sum((gamma * own) ** (later - now) * deltas[later] for later in range(now, steps)) for now in range(steps)
        ]
    return found


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    alpha=st.sampled_from([0.05, 0.2, 1.0]),
    seed=st.integers(0, 999),
)
def test_a_lambda_may_follow_the_length_of_an_answer(lengths: list[int], alpha: float, seed: int) -> None:
    experience = random_experience(lengths, seed)
    lambdas = [max(0.0, 1.0 - 1.0 / (alpha * length)) for length in lengths]
    credit = credit_of(experience, length_adaptive_alpha=alpha, gae_lambda=0.5)
    np.testing.assert_allclose(credit.advantages, written_out(experience, lambdas), atol=1e-5)


def test_the_critic_may_learn_other_returns_than_advantages_rest_on() -> None:
    lengths = [3, 1, 5]
    experience = random_experience(lengths)
    assert experience.values is not None
    together, apart = credit_of(experience), credit_of(experience, critic_gae_lambda=1.0)
    np.testing.assert_array_equal(apart.policy_advantages, together.policy_advantages)
    assert together.returns is not None
    np.testing.assert_allclose(together.returns, written_out(experience, [0.95] * 3) + experience.values, atol=1e-5)
    np.testing.assert_allclose(apart.returns, np.repeat(experience.rewards, lengths), atol=1e-5)
    halfway = credit_of(experience, critic_gae_lambda=0.5, length_adaptive_alpha=0.5)
    np.testing.assert_allclose(halfway.returns, written_out(experience, [0.5] * 3) + experience.values, atol=1e-5)


def test_rewards_of_tokens_are_scaled_about_their_mean() -> None:
    experience = random_experience([2, 4])
    plain, scaled = credit_of(experience).rewards, credit_of(experience, whiten_rewards=True).rewards
    assert scaled.mean() == pytest.approx(plain.mean())
    assert scaled.std() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose((scaled - scaled.mean()) * plain.std(), plain - plain.mean(), atol=1e-6)


def test_an_answer_that_did_not_end_is_worth_less() -> None:
    experience = random_experience([2, 3], finish_reasons=("length", "stop"))
    plain, less = credit_of(experience).rewards, credit_of(experience, missing_eos_penalty=0.75).rewards
    np.testing.assert_allclose(plain - less, [0.0, 0.75, 0.0, 0.0, 0.0], atol=1e-6)
