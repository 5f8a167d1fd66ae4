"""Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438).

Legend: B samples, A response tokens of all samples end to end, R longest response.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import FloatArray


def generalised_advantages(
    per_token_rewards: FloatArray,
    values: NDArray[np.float32],
    response_lengths: NDArray[np.int32],
    *,
    gamma: float,
    gae_lambda: float | FloatArray,
    final_values: NDArray[np.float32] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Advantages and returns, both [A] (Schulman et al. 2015, arXiv 1506.02438, equation 16).

        delta_t     = r_t + gamma V_{t+1} - V_t           V after the last token is that of ``final_values``
        advantage_t = delta_t + gamma lambda advantage_{t+1}
        return_t    = advantage_t + V_t

    ``values[t]`` is the critic's value of the state *before* token t is made.

    Args:
        gae_lambda: of all samples, or [B] of each.
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


def length_adaptive_lambdas(response_lengths: NDArray[np.int32], alpha: float) -> FloatArray:
    """[B] 1 - 1 / (alpha l), at least 0: what reaches the first token of an answer of what it was rewarded for does not
    vanish with the answer's length l (VAPO, arXiv 2504.05118, section 4.2)."""
    lambdas: FloatArray = np.maximum(0.0, 1.0 - 1.0 / (alpha * response_lengths))
    return lambdas


def rewards_to_go(per_token_rewards: FloatArray, response_lengths: NDArray[np.int32], *, gamma: float) -> FloatArray:
    """[A] the discounted rewards of a token and all after it, without any estimate: what there is to learn from."""
    no_values = np.zeros(len(per_token_rewards), dtype=np.float32)
    return generalised_advantages(per_token_rewards, no_values, response_lengths, gamma=gamma, gae_lambda=1.0)[0]


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
