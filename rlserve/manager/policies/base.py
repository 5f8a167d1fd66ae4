"""The contract of a policy: what it is shown, what it answers.

    observe (the controller reads everything once) ──> decide (pure) ──> act (the controller moves gangs)

Times are seconds on the caller's clock; a policy has none of its own, so the simulator can run the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.roles import Role


@dataclass(frozen=True, kw_only=True)
class GangFigures:
    """What a gang's type can do; only ratios between gangs matter."""

    memory_bandwidth_gb_s: float
    """Decoding is bound by it."""
    flops_tflops: float
    """Training is bound by it."""


@dataclass(frozen=True, kw_only=True)
class GangView:
    """One gang as a policy sees it: slots that move together, and the unit that a policy moves."""

    id: str
    """With one slot, that of the slot."""
    type: str
    num_slots: int = 1
    figures: GangFigures
    """Of one slot."""
    prefer: Role | None = None
    """Role that the user wants it in."""
    may_train: bool = True
    """False on spot machines, unless the user lets them train: what trains would be lost with them."""
    role: Role | None = None
    """None while it starts, idles or moves."""
    idle: bool = False
    """It waits for a role: its node has just joined."""
    alive: bool = True
    leaving: bool = False
    """Its node has said that it will leave: it is being emptied, and gets no other role."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """How much work the run lets in: what a queue can be at most follows from it."""

    prompts_per_step: int
    """Prompt groups of a training step."""
    samples_per_prompt: int
    max_live_groups: int
    """Prompt groups in flight and buffered: (max_staleness + 1) x prompts_per_step."""
    max_samples_per_replica: int
    """That a replica holds, with those of its groups that have ended already."""


def admission_window(
    *, prompts_per_step: int, samples_per_prompt: int, max_staleness: int, max_samples_per_replica: int
) -> Admission:
    """What a run with this bound on staleness lets in."""
    return Admission(
        prompts_per_step=prompts_per_step,
        samples_per_prompt=samples_per_prompt,
        max_live_groups=(max_staleness + 1) * prompts_per_step,
        max_samples_per_replica=max_samples_per_replica,
    )


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The run at one moment. A reading that failed is None: unknown, not zero."""

    time_s: float
    queue_length: int | None
    """Prompt groups that wait for a replica."""
    client_queue: float = 0.0
    """Requests of clients that wait for one, each as so many prompt groups as their share of the replicas says."""
    num_buffered: int
    """Finished groups that wait for the trainer."""
    num_in_flight: int
    """Groups admitted and not yet finished."""
    trainer_waiting: bool | None
    """Whether the trainer waits for a batch."""
    num_steps_left: int | None
    """Training steps that the run has still to end; None if it has no end."""
    admission: Admission
    measured: Measurements
    gangs: tuple[GangView, ...]
    """Those that are there; not those whose node has gone."""
    legal_trainer_sizes: tuple[int, ...]
    """Numbers of train gangs that the trainer can run on."""
    moving: bool
    """A move is under way."""
    last_move_end_s: float | None
    """When the last move ended; None if there was none."""

    @cached_property
    def staying(self) -> tuple[GangView, ...]:
        """Gangs that live and whose nodes have not said that they will leave: what a policy plans with."""
        return tuple(gang for gang in self.gangs if gang.alive and not gang.leaving)

    @property
    def unit(self) -> str:
        """What the user calls a gang."""
        return "gang" if any(gang.num_slots > 1 for gang in self.gangs) else "slot"


@dataclass(frozen=True, kw_only=True)
class Move:
    """Bring a gang into a role."""

    gang_id: str
    to: Role


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a policy expects of a move that it makes, or of the best one that it leaves: it pays if it gains more than
    it costs."""

    rate_now: float
    """Prompt groups trained in a second, as the gangs are."""
    rate_after: float
    """After the move."""
    gain: float
    """Prompt groups more over the horizon."""
    cost: float
    """Prompt groups that are not made because of the move."""
    horizon_s: float
    """How long the policy trusts the rates."""
    target_num_rollout: int
    """Gangs in rollout that it makes for, one move at a time."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A decision with the grounds for it, which go to ``decisions.jsonl``."""

    moves: tuple[Move, ...] = ()
    reason: str
    forecast: Forecast | None = None
    """None from a policy that predicts nothing, or before it can."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Whatever else the decision rests on."""


StateT = TypeVar("StateT")


class Policy(ABC, Generic[StateT]):
    """Decides which gangs move. Keeps nothing between decisions but the state that it hands back."""

    @abstractmethod
    def initial_state(self) -> StateT:
        """State before the first decision."""

    @abstractmethod
    def decide(self, observation: Observation, state: StateT) -> tuple[Plan, StateT]:
        """A pure function: equal arguments give equal results."""
