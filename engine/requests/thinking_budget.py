"""How long a sample may think. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ThinkingBudget:
    """A sample thinks from one token to another, and this many tokens between them at most; then the closing one is
    drawn, whatever else is asked for."""

    num_tokens: int
    """0 closes at once."""
    opening_token_id: int
    closing_token_id: int
    begins_inside: bool = False
    """Whether the prompt has opened it: what it says behind its last opening token counts."""

    def is_spent(self, prompt_token_ids: NDArray[np.int32], generated_token_ids: NDArray[np.int32]) -> bool:
        """Whether the next token of a sample must be the closing one."""
        closed = np.flatnonzero(generated_token_ids == self.closing_token_id)
        since = generated_token_ids[closed[-1] + 1 :] if len(closed) else generated_token_ids
        opened = np.flatnonzero(since == self.opening_token_id)
        if self.begins_inside and not len(closed):
            before = np.flatnonzero(prompt_token_ids == self.opening_token_id)
            return len(prompt_token_ids) - 1 - int(before[-1] if len(before) else -1) + len(since) >= self.num_tokens
        return len(opened) > 0 and len(since) - 1 - int(opened[0]) >= self.num_tokens
