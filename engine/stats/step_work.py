"""What one step of an engine computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Counts of one step; all are 0 where it computed nothing."""

    num_samples: int
    """That decode: each gains a token."""
    num_kv_tokens: int
    """Tokens of these samples, whose keys and values attention reads."""
    num_prefill_tokens: int
    """Of prompts, and of what preemption or a move made to be computed again."""


NO_WORK = StepWork(num_samples=0, num_kv_tokens=0, num_prefill_tokens=0)
