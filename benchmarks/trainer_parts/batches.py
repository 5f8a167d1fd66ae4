"""Made-up batches for updates and memory: random tokens, lengths as the case draws them, rewards that differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer_parts.base import Case
from trainer_parts.data import answer_lengths


@dataclass(frozen=True, kw_only=True, eq=False)
class MadeUpBatch:
    """Samples end to end, as the trainer has them.

    Legend: B samples, T tokens of prompts and answers, A answer tokens.
    """

    num_prompt_tokens: int
    """Of every sample."""
    lengths: NDArray[np.int32]
    """[B] answer tokens."""
    token_ids: NDArray[np.int32]
    """[T]"""
    rewards: NDArray[np.float32]
    """[B]"""
    group_size: int
    """Consecutive samples that answer the same prompt."""

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def num_response_tokens(self) -> int:
        """A."""
        return int(self.lengths.sum())

    @property
    def work(self) -> dict[str, int]:
        """Of one update on it."""
        return {"samples": self.num_samples, "answer tokens": self.num_response_tokens}


def make_batch(case: Case, vocab_size: int, step: int) -> MadeUpBatch:
    """The batch of a step, the same in every process."""
    rng = np.random.default_rng(step)
    lengths = np.array(answer_lengths(case, step), dtype=np.int32)
    num_tokens = int(lengths.sum()) + case.prompt_tokens * len(lengths)
    return MadeUpBatch(
        num_prompt_tokens=case.prompt_tokens,
        lengths=lengths,
        token_ids=rng.integers(0, vocab_size, num_tokens).astype(np.int32),
        rewards=rng.normal(size=len(lengths)).astype(np.float32),
        group_size=case.num_samples,
    )
