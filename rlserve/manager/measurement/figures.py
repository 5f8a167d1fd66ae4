"""What a run has measured, as a policy is shown it. None, or an empty tuple, where nothing was measured yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlserve.manager.roles import Role


@dataclass(frozen=True, kw_only=True)
class TrainRate:
    """Training with one set of gangs."""

    types: tuple[str, ...]
    """Of its gangs, sorted: two sets of the same types are one size."""
    step_s: float
    """Computing time of a step, recent ones counting most."""
    tokens_per_s: float
    """Of its batches, while computing."""
    token_s: float
    """What one more token in a batch adds to its step, by how recent steps differed."""
    early_s: float
    """How much sooner than that says the quickest of recent steps ended."""
    num_steps: int
    """Measured at this size."""
    last_s: float
    """When the last of them ended."""


@dataclass(frozen=True, kw_only=True)
class ReplicaRate:
    """One gang in rollout, lately."""

    gang_id: str
    type: str
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    busy_share: float
    """Of its time, computing."""
    tokens_per_s: float | None
    """While computing; None where it has not computed."""
    mean_running: float | None
    """Samples in a step, in the mean."""


@dataclass(frozen=True, kw_only=True)
class DecodeCurve:
    """How the time of a decoding step grows with its batch on gangs of one type: moments of what was seen, weighted by
    computing time. With no variance the line through them is not known, only a point of it."""

    type: str
    busy_s: float
    """Computing time seen, older time counting less."""
    mean_batch: float
    mean_step_s: float
    """A step with ``mean_batch`` samples takes this long, prefills in between included."""
    batch_variance: float
    covariance: float
    """Of batch and step time: divided by ``batch_variance``, what one more sample adds to a step."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What training came to with the split that there is now: its last steps since the last move."""

    num_steps: int
    groups_per_s: float
    """Trained, by the clock: waits and weights included, moves not."""
    wait_share: float
    """Of that time, waited for batches."""


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """A share that goes to and fro."""

    mean: float
    """Of the last two times between changes."""
    regime_s: float
    """Mean time between two changes."""


@dataclass(frozen=True, kw_only=True)
class MoveCost:
    """What moves in one direction have cost, in the mean of the last few."""

    duration_s: float
    """From the end of work in the old role to the begin of work in the new one."""
    trainer_pause_s: float
    num_moves: int


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that was measured."""

    train: tuple[TrainRate, ...] = ()
    replicas: tuple[ReplicaRate, ...] = ()
    curves: tuple[DecodeCurve, ...] = ()
    progress: Progress | None = None
    """None until a step has ended after the last move."""
    last_step_end_s: float | None = None
    tokens_per_group: float | None = None
    """Generated, of groups kept or not."""
    trained_tokens_per_group: float | None = None
    """Of the batches lately, prompts included."""
    kept_share: float | None = None
    """Of scored groups, lately, that may be trained on."""
    kept_alternation: Alternation | None = None
    """Of that share; None where it does not go to and fro."""
    num_kept_observed: int = 0
    """Scored groups that ``kept_share`` rests on; few right after the share has changed."""
    wait_share: float | None = None
    """Of the trainer's time, lately, that it waited for batches."""
    weights_s: float | None = None
    """Of a training step, lately, that went to copying and sending weights."""
    move_costs: Mapping[Role, MoveCost] = field(default_factory=dict)
    """By the role that was taken."""
    leave_s: float | None = None
    """Leaving rollout for training until ready to join, the longest of the last few times."""
    sync_s: float | None = None
    """A version of the weights from trainer to replica, lately."""
    sync_pause_s: float | None = None
    """The replica's pause in it."""
    host_busy_share: float | None = None
    """Of the busiest node with CPU slots; None where there are none."""
