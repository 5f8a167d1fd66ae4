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
    num_recomputed_tokens: int = 0
    """Of these, those of samples that had been computed before, here or by another engine."""

    @property
    def recomputed_share(self) -> float:
        """Of the tokens that the step computes."""
        num_tokens = self.num_samples + self.num_prefill_tokens
        return self.num_recomputed_tokens / num_tokens if num_tokens else 0.0


NO_WORK = StepWork(num_samples=0, num_kv_tokens=0, num_prefill_tokens=0)
