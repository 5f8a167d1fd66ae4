"""Rewards per token, advantages within a group, generalised advantage estimation and whitening: pure functions of the
whole batch.

Every rank runs them on the same gathered arrays, so placement cannot change a bit.

Legend: B samples, A response tokens of all samples end to end, R longest response.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def token_rewards(
    rewards: NDArray[np.float32],
    response_lengths: NDArray[np.int32],
    log_probs: NDArray[np.float32] | None,
    reference_log_probs: NDArray[np.float32] | None,
    kl_coefficient: float,
) -> FloatArray:
    """[A] the reward of each token: the sample's reward at its last token, less the KL penalty.

    The penalty of a token is ``kl_coefficient * (log π - log π_reference)``, the one-sample estimate of the KL
    divergence (Ziegler et al. 2019, arXiv 1909.08593, equation 2). No reference, no penalty.
    """
    per_token = np.zeros(int(response_lengths.sum()))
    if reference_log_probs is not None:
        assert log_probs is not None
        per_token -= kl_coefficient * (log_probs.astype(np.float64) - reference_log_probs)
    per_token[np.cumsum(response_lengths) - 1] += rewards
    return per_token


def generalised_advantages(
    per_token_rewards: FloatArray,
    values: NDArray[np.float32],
    response_lengths: NDArray[np.int32],
    *,
    gamma: float,
    gae_lambda: float,
    final_values: NDArray[np.float32] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Advantages and returns, both [A] (Schulman et al. 2015, arXiv 1506.02438, equation 16).

        delta_t     = r_t + gamma V_{t+1} - V_t           V after the last token is that of ``final_values``
        advantage_t = delta_t + gamma lambda advantage_{t+1}
        return_t    = advantage_t + V_t

    ``values[t]`` is the critic's value of the state *before* token t is made.

    Args:
        final_values: [B] the value of the state after a sample's last token: 0 where the episode has ended, as it has
            for all samples if this is None.
    """
    rewards_BR, values_BR = (_pad(flat, response_lengths) for flat in (per_token_rewards, values))
    num_samples, longest = rewards_BR.shape
    next_values_BR = np.concatenate([values_BR[:, 1:], np.zeros((num_samples, 1))], axis=1)
    if final_values is not None:
        next_values_BR[np.arange(num_samples), response_lengths - 1] = final_values
    deltas_BR = rewards_BR + gamma * next_values_BR - values_BR
    advantages_BR = np.zeros_like(deltas_BR)
    running_B = np.zeros(num_samples)
    # The padding behind a short response has reward, value and so delta 0: it leaves ``running`` at 0.
    for position in reversed(range(longest)):
        running_B = deltas_BR[:, position] + gamma * gae_lambda * running_B
        advantages_BR[:, position] = running_B
    advantages = advantages_BR[_response_mask(response_lengths)]
    return advantages, advantages + values


def group_advantages(rewards: NDArray[np.float32], group_index: NDArray[np.int32], *, scale_by_std: bool) -> FloatArray:
    """[B] how much better a sample is than its group (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

        advantage_b = (r_b - mean of the group) / (standard deviation of the group + 1e-6)

    A sample that is alone in its group, and all samples of a group whose rewards are alike, get 0.

    Args:
        group_index: [B] samples with the same number are one group.
        scale_by_std: False leaves the division out. The deviation is the sample's (n - 1), as TRL and verl have it.
    """
    _, groups_B = np.unique(group_index, return_inverse=True)
    sizes_G = np.bincount(groups_B)
    means_G = np.bincount(groups_B, weights=rewards) / sizes_G
    differences_B: FloatArray = rewards - means_G[groups_B]
    if not scale_by_std:
        return differences_B
    squares_G = np.bincount(groups_B, weights=differences_B**2)
    deviations_G = np.sqrt(squares_G / np.maximum(sizes_G - 1, 1))
    scaled_B: FloatArray = differences_B / (deviations_G[groups_B] + 1e-6)
    return scaled_B


def rewards_to_go(per_token_rewards: FloatArray, response_lengths: NDArray[np.int32], *, gamma: float) -> FloatArray:
    """[A] the discounted rewards of a token and all after it, without any estimate: what there is to learn from."""
    no_values = np.zeros(len(per_token_rewards), dtype=np.float32)
    return generalised_advantages(per_token_rewards, no_values, response_lengths, gamma=gamma, gae_lambda=1.0)[0]


def whiten(advantages: FloatArray, max_spread: float = math.inf) -> FloatArray:
    """[A] advantages shifted to mean 0 and scaled to (population) standard deviation 1 over all tokens; a lone token
    gets 0.

    Args:
        max_spread: standard deviation of what the advantages estimate. Where theirs is larger, the rest is the critic's
            error, which scaling to 1 would blow up; so they are scaled to the quotient of the two instead.
    """
    spread = advantages.std() + 1e-8
    whitened: FloatArray = (advantages - advantages.mean()) / spread * min(1.0, max_spread / spread)
    return whitened


def _response_mask(response_lengths: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[B, R] where a padded matrix holds a real token."""
    positions_R = np.arange(int(response_lengths.max()))
    return np.less(positions_R[None, :], response_lengths[:, None])


def _pad(flat: NDArray[np.float64] | NDArray[np.float32], response_lengths: NDArray[np.int32]) -> FloatArray:
    """[A] → [B, R], zeros behind short responses."""
    mask = _response_mask(response_lengths)
    padded = np.zeros(mask.shape)
    padded[mask] = flat
    return padded
