"""The batch that a trainer steps on: ragged samples laid end to end in flat arrays.

Legend: B samples, P prompt tokens of a sample, R response tokens of a sample, T = sum of P + R, A = sum of R.
NumPy, because it crosses process borders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples with their rewards. Sample b has ``prompt_lengths[b]`` + ``response_lengths[b]`` tokens."""

    sample_ids: tuple[str, ...]
    """B names, each trained on once in a run."""
    group_index: NDArray[np.int32]
    """[B] samples with the same number answer the same prompt."""
    prompt_lengths: NDArray[np.int32]
    """[B]"""
    response_lengths: NDArray[np.int32]
    """[B]"""
    token_ids: NDArray[np.int32]
    """[T] prompt then response of each sample, samples end to end."""
    log_probs: NDArray[np.float32]
    """[A] raw log-probabilities given by the engine for the response tokens."""
    behaviour_log_probs: NDArray[np.float32]
    """[A] log-probabilities under the distribution that was sampled from."""
    weight_versions: NDArray[np.int32]
    """[A] version of the weights that made each response token."""
    rewards: NDArray[np.float32]
    """[B] one number for the whole response, credited to its last token."""
    is_truncated: NDArray[np.bool_]
    """[B] where the response was cut by a limit of length, and did not end by itself."""

    def __post_init__(self) -> None:
        num_samples, num_response_tokens = len(self.sample_ids), int(self.response_lengths.sum())
        assert self.group_index.shape == self.prompt_lengths.shape == self.response_lengths.shape == (num_samples,)
        assert self.rewards.shape == self.is_truncated.shape == (num_samples,)
        assert num_samples >= 1
        assert self.prompt_lengths.min() >= 1, "a prompt needs a token, whose state predicts the first of the response"
        assert self.response_lengths.min() >= 1, "a response needs a token, which the reward is credited to"
        assert self.token_ids.shape == (int(self.prompt_lengths.sum()) + num_response_tokens,)
        for per_token in (self.log_probs, self.behaviour_log_probs, self.weight_versions):
            assert per_token.shape == (num_response_tokens,)

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.sample_ids)

    @property
    def num_response_tokens(self) -> int:
        """A."""
        return int(self.response_lengths.sum())

    def is_finite(self) -> NDArray[np.bool_]:
        """[B] whether all numbers of a sample are finite: its reward, and both log-probabilities of each token."""
        per_token = np.isfinite(self.log_probs) & np.isfinite(self.behaviour_log_probs)
        starts = np.cumsum(self.response_lengths) - self.response_lengths
        return np.logical_and.reduceat(per_token, starts) & np.isfinite(self.rewards)

    def tokens_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """[a] where the response tokens of these samples [S] stand in the per-token arrays, sample by sample."""
        lengths = self.response_lengths[samples].astype(np.int64)
        starts = (np.cumsum(self.response_lengths, dtype=np.int64) - self.response_lengths)[samples]
        return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())

    def select(self, samples: NDArray[np.int64]) -> Batch:
        """The batch of these samples alone, given by their indices [S], at least one."""
        chosen = np.zeros(self.num_samples, dtype=bool)
        chosen[samples] = True
        assert (np.diff(samples) > 0).all(), "in the order of the batch"
        of_token = np.repeat(chosen, self.response_lengths)
        return Batch(
            sample_ids=tuple(self.sample_ids[index] for index in samples),
            group_index=self.group_index[chosen],
            prompt_lengths=self.prompt_lengths[chosen],
            response_lengths=self.response_lengths[chosen],
            token_ids=self.token_ids[np.repeat(chosen, self.prompt_lengths + self.response_lengths)],
            log_probs=self.log_probs[of_token],
            behaviour_log_probs=self.behaviour_log_probs[of_token],
            weight_versions=self.weight_versions[of_token],
            rewards=self.rewards[chosen],
            is_truncated=self.is_truncated[chosen],
        )
