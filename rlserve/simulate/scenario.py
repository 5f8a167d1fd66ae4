"""Everything that a simulated run is made of, but the policy and the seed."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.errors import check_fields
from rlserve.manager.policies.base import Admission, GangView
from rlserve.simulate.costs.base import Costs
from rlserve.simulate.workload.base import Workload


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A pool, its work, and what things cost there."""

    gangs: tuple[GangView, ...]
    """Without roles: who begins as what follows from ``num_initial_rollout``."""
    workload: Workload
    costs: Costs
    prompts_per_step: int = 64
    samples_per_prompt: int = 8
    max_staleness: int = 1
    max_num_sequences: int = 64
    """Samples that a replica computes at once."""
    num_initial_rollout: int | None = None
    """Gangs that begin as rollout; None takes those that prefer it, or half."""
    duration_s: float = 7200.0
    scoring_s: float = 0.0
    """From the end of a group to its reward."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "gangs": len(self.gangs) >= 2 or "must hold at least 2 gangs: one to train and one to roll out",
                "duration_s": self.duration_s > 0 or "must be above 0",
                "scoring_s": self.scoring_s >= 0 or "must be at least 0",
            },
        )

    @property
    def admission(self) -> Admission:
        """How much work is let in."""
        return Admission(
            prompts_per_step=self.prompts_per_step,
            samples_per_prompt=self.samples_per_prompt,
            max_live_groups=(self.max_staleness + 1) * self.prompts_per_step,
            max_samples_per_replica=self.max_num_sequences,
        )
