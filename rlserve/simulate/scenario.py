"""Everything that a simulated run is made of, but the policy and the seed."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlserve.errors import check_fields
from rlserve.manager.policies.base import Admission, GangView, admission_window
from rlserve.manager.scale_out.base import Terms
from rlserve.rollout.workload.workload import Workload
from rlserve.simulate.costs.base import Costs
from rlserve.simulate.markets.base import Zone
from rlserve.simulate.work import GroupWork
from rlserve.tracking.cost.prices import Prices


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """What calls between processes and the controller's own work add to the times of a run's costs."""

    step_s: float = 0.0
    """To a training step."""
    sync_s: float = 0.0
    """To the way of a version of the weights to a replica; half as much to one and a half times, as it happens."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "step_s": self.step_s >= 0 or "must be at least 0",
                "sync_s": self.sync_s >= 0 or "must be at least 0",
            },
        )


@dataclass(frozen=True, kw_only=True)
class LossRates:
    """How often gangs are lost, and how they come back. Rates are those of the whole pool."""

    failures_per_hour: float = 0.0
    """Workers that die without a word."""
    restart_s: float = 20.0
    """Until a new one is up."""
    notices_per_hour: float = 0.0
    """Nodes that say that they will leave, as spot instances do."""
    grace_s: float = 30.0
    """From the notice until the node is away."""
    away_s: float = 300.0
    """Until another joins in its place."""
    machine_start_s: float = 180.0
    """Of a spot machine that can be had again, until it has joined; it is paid from its start on."""

    def __post_init__(self) -> None:
        check_fields(self, {name: value >= 0 or "must be at least 0" for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A pool, its work, and what things cost there."""

    gangs: tuple[GangView, ...]
    """Without roles: who begins as what follows from ``num_initial_rollout``."""
    workload: Workload
    costs: Costs
    num_prompt_tokens: int = 256
    """Of a prompt."""
    max_tokens: int = 32_768
    """Of an answer."""
    prompts_per_step: int = 64
    samples_per_prompt: int = 8
    num_greedy: int = 0
    """Answers to a prompt besides those, which are generated and scored, and not trained on."""
    max_staleness: int = 1
    max_num_sequences: int = 64
    """Samples that a replica computes at once."""
    num_initial_rollout: int | None = None
    """Gangs that begin as rollout; None takes those that prefer it, or half."""
    duration_s: float = 7200.0
    """The run ends then at the latest."""
    num_steps: int | None = None
    """It ends with this step, which its load takes its course by; None: time alone counts."""
    scoring_s: float = 0.0
    """From the end of a group to its reward."""
    overheads: Overheads = field(default_factory=Overheads)
    losses: LossRates = field(default_factory=LossRates)
    zones: tuple[Zone, ...] = ()
    """Where gangs on spot machines come from. All of them are there at the begin."""
    scale_out: Terms | None = None
    """What the run may grow by; None where it stays as it begins."""
    prices: Prices | None = None
    """Of the gangs' slots; None counts GPU-hours alone."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "gangs": len(self.gangs) >= 2 or "must hold at least 2 gangs: one to train and one to roll out",
                "duration_s": self.duration_s > 0 or "must be above 0",
                "num_steps": self.num_steps is None or self.num_steps >= 1 or "must be at least 1",
                "num_prompt_tokens": self.num_prompt_tokens >= 1 or "must be at least 1",
                "scoring_s": self.scoring_s >= 0 or "must be at least 0",
            },
        )

    @property
    def num_answers_per_prompt(self) -> int:
        """That are generated."""
        return self.samples_per_prompt + self.num_greedy

    def work(self, position: int, progress: float) -> GroupWork:
        """What the group at ``position`` takes, admitted at this point of the run."""
        lengths = self.workload.num_tokens(
            position, self.num_answers_per_prompt, max_tokens=self.max_tokens, progress=progress
        )
        return GroupWork(num_prompt_tokens=self.num_prompt_tokens, lengths=tuple(lengths), num_greedy=self.num_greedy)

    def mean_num_tokens(self, progress: float) -> float:
        """Of an answer, at this point of the run."""
        return self.workload.mean_num_tokens(progress, max_tokens=self.max_tokens)

    @property
    def num_groups(self) -> int | None:
        """Trained in the whole run; None where time alone counts."""
        return None if self.num_steps is None else self.num_steps * self.prompts_per_step

    @property
    def admission(self) -> Admission:
        """How much work is let in."""
        return admission_window(
            prompts_per_step=self.prompts_per_step,
            samples_per_prompt=self.num_answers_per_prompt,
            max_staleness=self.max_staleness,
            max_samples_per_replica=self.max_num_sequences,
        )
