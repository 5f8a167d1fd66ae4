"""What a run counts besides the ledger; saved in every checkpoint, so that a resumed run goes on counting."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(kw_only=True)
class Counters:
    """Sums over the whole run, resumes included."""

    num_steps: int = 0
    """Training steps done, which is also the version of the weights."""
    moves_to_rollout: int = 0
    moves_to_train: int = 0
    engine_restarts: int = 0
    """Engines that had to be made anew because their worker was lost."""
    worker_failures: int = 0
    num_trained_tokens: int = 0
    """Prompt and response tokens of all training steps."""
    num_generated_tokens: int = 0
    """Before this resume; the replicas count the rest."""
    loop_s: float = 0.0
    """Seconds spent generating and training, before this resume."""
    max_staleness: int = 0
    sum_abs_log_prob_difference: float = 0.0
    """Sum over steps of the mean absolute difference between engine and trainer."""
    seconds_to_first_step: float | None = None
    held_out_before: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Counters:
        """From the checkpoint."""
        return cls(**saved)
