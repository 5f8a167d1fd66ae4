"""Raw log-probabilities of the tokens of one prompt, gathered chunk by chunk.

Legend: P prompt tokens, N positions at a time, V vocabulary, K likeliest tokens told.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.requests.request import TopLogProbs


class PromptScores:
    """What is known of each prompt token so far. Positions are scored in order, each once: a prompt that is
    computed again after a preemption goes on where it was, and after a change of weights begins anew."""

    def __init__(self, prompt_P: NDArray[np.int32], num_top: int) -> None:
        self._prompt_P = prompt_P
        self._num_top = num_top
        self._log_probs: list[float | None]
        self._top_log_probs: list[TopLogProbs]
        self.restart()

    def restart(self) -> None:
        """Forget all scores."""
        self._log_probs, self._top_log_probs = [None], [()]

    @property
    def num_scored(self) -> int:
        """Tokens from the beginning whose log-probability is known; the first has none to know."""
        return len(self._log_probs)

    @property
    def is_complete(self) -> bool:
        """Whether every token is scored."""
        return self.num_scored == len(self._prompt_P)

    def wanted(self, start: int, end: int) -> range:
        """Those of the positions [start, end) whose logits score a token that is not scored yet."""
        return range(max(start, self.num_scored - 1), min(end, len(self._prompt_P) - 1))

    def record(self, logits_NV: torch.Tensor) -> None:
        """Score the next N tokens by the logits of the positions before them."""
        log_probs_NV = logits_NV.float().log_softmax(dim=-1)
        following_N = torch.from_numpy(self._prompt_P[self.num_scored :][: len(logits_NV)].astype(np.int64))
        self._log_probs += log_probs_NV.gather(1, following_N.to(logits_NV.device).unsqueeze(1)).squeeze(1).tolist()
        self._top_log_probs += top_log_probs(log_probs_NV, self._num_top)

    def result(self) -> tuple[tuple[float | None, ...], tuple[TopLogProbs, ...]]:
        """Log-probability and likeliest tokens of each prompt token; empty while they are not complete."""
        if not self.is_complete:
            return (), ()
        return tuple(self._log_probs), tuple(self._top_log_probs) if self._num_top else ()


def top_log_probs(log_probs_NV: torch.Tensor, num_top: int) -> list[TopLogProbs]:
    """The likeliest tokens of each row, likeliest first."""
    top = log_probs_NV.topk(num_top, dim=-1)
    return [
        tuple(zip(token_ids, values, strict=True))
        for token_ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
