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
class MoveCost:
    """What moves in one direction have cost, in the mean of the last few."""

    duration_s: float
    """From the decision to useful work in the new role."""
    trainer_pause_s: float
    num_moves: int


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that was measured."""

    train: tuple[TrainRate, ...] = ()
    replicas: tuple[ReplicaRate, ...] = ()
    tokens_per_group: float | None = None
    """Generated, of groups kept or not."""
    kept_share: float | None = None
    """Of scored groups, lately, that may be trained on."""
    wait_share: float | None = None
    """Of the trainer's time, lately, that it waited for batches."""
    move_costs: Mapping[Role, MoveCost] = field(default_factory=dict)
    """By the role that was taken."""
    sync_s: float | None = None
    """A version of the weights from trainer to replica, lately."""
    sync_pause_s: float | None = None
    """The replica's pause in it."""
    host_busy_share: float | None = None
    """Of the busiest node with CPU slots; None where there are none."""
