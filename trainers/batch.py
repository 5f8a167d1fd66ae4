"""The batch that a trainer steps on: ragged samples laid end to end in flat arrays.

Legend: B samples, P prompt tokens of a sample, R response tokens of a sample, T = sum of P + R, A = sum of R,
S some of the samples. NumPy, because it crosses process borders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LENGTH = "length"
"""Reason of a sample that was cut by a limit of length, and did not end by itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GreedyAnswers:
    """The greedy answers to the prompts of B samples, one a prompt. They are scored and not trained on."""

    rewards: NDArray[np.float32]
    """[B]"""
    lengths: NDArray[np.int32]
    """[B] tokens that the policy made."""
    finish_reasons: tuple[str, ...]
    """B times why it ended."""

    def select(self, samples: NDArray[np.int64]) -> GreedyAnswers:
        """Those of some samples, given by their indices."""
        return GreedyAnswers(
            rewards=self.rewards[samples],
            lengths=self.lengths[samples],
            finish_reasons=tuple(self.finish_reasons[index] for index in samples),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples with their rewards. Sample b has ``prompt_lengths[b]`` + ``response_lengths[b]`` tokens."""

    sample_ids: tuple[str, ...]
    """B names, each trained on once in a run."""
    group_ids: tuple[str, ...]
    """B names; samples with the same one answer the same prompt."""
    prompt_lengths: NDArray[np.int32]
    """[B]"""
    response_lengths: NDArray[np.int32]
    """[B]"""
    token_ids: NDArray[np.int32]
    """[T] prompt then response of each sample, samples end to end."""
    loss_mask: NDArray[np.bool_]
    """[A] which response tokens the policy made and is trained on. The others, such as the answer of a tool, are read
    by the networks and otherwise left alone; their log-probabilities and versions mean nothing."""
    log_probs: NDArray[np.float32]
    """[A] raw log-probabilities given by the engine for the response tokens."""
    behaviour_log_probs: NDArray[np.float32]
    """[A] log-probabilities under the distribution that was sampled from."""
    weight_versions: NDArray[np.int32]
    """[A] version of the weights that made each response token."""
    rewards: NDArray[np.float32]
    """[B] the total that is trained on: one number for the whole response, credited to its last trained token but for
    what ``turn_rewards`` credits to others."""
    turn_rewards: NDArray[np.float32] | None = None
    """[A] the part of the total that came after a turn of a conversation, at the turn's last token; 0 elsewhere. None
    where there are no turns."""
    reward_components: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """[B] each: further numbers of the reward by name, NaN where a sample has none."""
    finish_reasons: tuple[str, ...]
    """B times why the response ended, in the engine's words: ``stop`` or ``length``."""
    greedy_answers: GreedyAnswers | None = None
    """None where the algorithm does not ask for them."""

    def __post_init__(self) -> None:
        num_samples, num_response_tokens = len(self.sample_ids), int(self.response_lengths.sum())
        assert self.prompt_lengths.shape == self.response_lengths.shape == self.rewards.shape == (num_samples,)
        assert len(self.group_ids) == len(self.finish_reasons) == num_samples
        assert all(component.shape == (num_samples,) for component in self.reward_components.values())
        assert num_samples >= 1
        assert self.prompt_lengths.min() >= 1, "a prompt needs a token, whose state predicts the first of the response"
        assert self.response_lengths.min() >= 1, "a response needs a token, which the reward is credited to"
        assert self.token_ids.shape == (int(self.prompt_lengths.sum()) + num_response_tokens,)
        for per_token in (self.loss_mask, self.log_probs, self.behaviour_log_probs, self.weight_versions):
            assert per_token.shape == (num_response_tokens,)
        assert self.turn_rewards is None or self.turn_rewards.shape == (num_response_tokens,)
        assert self.trained_lengths.min() >= 1, "a sample needs a token to train on"

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.sample_ids)

    @property
    def num_response_tokens(self) -> int:
        """A."""
        return int(self.response_lengths.sum())

    @property
    def trained_lengths(self) -> NDArray[np.int32]:
        """[B] response tokens of each sample that are trained on."""
        return np.add.reduceat(self.loss_mask, self.response_starts, dtype=np.int32)

    @property
    def group_index(self) -> NDArray[np.int32]:
        """[B] the groups by number, in order of their first samples."""
        numbers = {group_id: number for number, group_id in enumerate(dict.fromkeys(self.group_ids))}
        return np.array([numbers[group_id] for group_id in self.group_ids], dtype=np.int32)

    @property
    def is_truncated(self) -> NDArray[np.bool_]:
        """[B] where the response was cut by a limit of length."""
        return np.array([reason == LENGTH for reason in self.finish_reasons])

    def is_finite(self) -> NDArray[np.bool_]:
        """[B] whether all numbers of a sample that are trained on are finite: its reward, and both log-probabilities of
        each token."""
        per_token = np.isfinite(self.log_probs) & np.isfinite(self.behaviour_log_probs)
        is_finite = np.logical_and.reduceat(per_token | ~self.loss_mask, self.response_starts)
        if self.greedy_answers is not None:
            is_finite &= np.isfinite(self.greedy_answers.rewards)
        return is_finite & np.isfinite(self.rewards)

    def tokens_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """[a] where the trained tokens of these samples [S] stand in the per-token arrays, sample by sample."""
        lengths = self.response_lengths[samples].astype(np.int64)
        starts = self.response_starts[samples]
        places = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        trained: NDArray[np.int64] = places[self.loss_mask[places]]
        return trained

    def select(self, samples: NDArray[np.int64]) -> Batch:
        """The batch of these samples alone, given by their indices [S], at least one."""
        chosen = np.zeros(self.num_samples, dtype=bool)
        chosen[samples] = True
        assert (np.diff(samples) > 0).all(), "in the order of the batch"
        of_token = np.repeat(chosen, self.response_lengths)
        return Batch(
            sample_ids=tuple(self.sample_ids[index] for index in samples),
            group_ids=tuple(self.group_ids[index] for index in samples),
            prompt_lengths=self.prompt_lengths[chosen],
            response_lengths=self.response_lengths[chosen],
            token_ids=self.token_ids[np.repeat(chosen, self.prompt_lengths + self.response_lengths)],
            loss_mask=self.loss_mask[of_token],
            log_probs=self.log_probs[of_token],
            behaviour_log_probs=self.behaviour_log_probs[of_token],
            weight_versions=self.weight_versions[of_token],
            rewards=self.rewards[chosen],
            turn_rewards=None if self.turn_rewards is None else self.turn_rewards[of_token],
            reward_components={name: component[chosen] for name, component in self.reward_components.items()},
            finish_reasons=tuple(self.finish_reasons[index] for index in samples),
            greedy_answers=None if self.greedy_answers is None else self.greedy_answers.select(samples),
        )

    @property
    def response_starts(self) -> NDArray[np.int64]:
        """[B] where each sample's response begins in the per-token arrays."""
        starts: NDArray[np.int64] = np.cumsum(self.response_lengths, dtype=np.int64) - self.response_lengths
        return starts
