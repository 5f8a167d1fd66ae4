"""What happens in a run, as the measurement is told: one frozen record a happening.

The controller and the simulator report the same records, so a policy rests on the same figures in both. Times are
seconds on the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.manager.roles import Role


class Reading:
    """Base of everything that the measurement is told."""


@dataclass(frozen=True, kw_only=True)
class StepDone(Reading):
    """A training step has ended."""

    end_s: float
    types: tuple[str, ...]
    """Of the gangs that made it, one for each."""
    wait_s: float
    """Waited for its batch."""
    weights_s: float
    """Waited for weights to be copied, or to reach the replicas."""
    work_s: float
    """Computed."""
    num_groups: int
    num_tokens: int
    """Prompts included."""


@dataclass(frozen=True, kw_only=True)
class ReplicaPolled(Reading):
    """Numbers of one replica; totals since it took the role at ``since_s``."""

    time_s: float
    gang_id: str
    type: str
    since_s: float
    num_running: int
    """Samples with KV blocks."""
    num_waiting: int
    """Samples that have none yet, or lost them."""
    kv_cache_usage: float
    """0 to 1."""
    num_generated_tokens: int
    busy_s: float
    """Seconds that the engine computed."""
    running_s: float
    """Integral of ``num_running`` over ``busy_s``: divided by it, the mean batch of a step."""


@dataclass(frozen=True, kw_only=True)
class GroupDone(Reading):
    """A prompt group was scored."""

    time_s: float
    kept: bool
    """It may be trained on; else it was dropped."""
    num_tokens: int
    """Generated for it."""


@dataclass(frozen=True, kw_only=True)
class MoveDone(Reading):
    """A gang has changed its role."""

    begin_s: float
    """When it stopped what it did before."""
    end_s: float
    gang_id: str
    to: Role
    trainer_pause_s: float
    """How long training stood still for it."""


@dataclass(frozen=True, kw_only=True)
class RolloutLeft(Reading):
    """A gang has left rollout for training: its requests went on elsewhere, its memory is free, and it is ready to
    join."""

    end_s: float
    gang_id: str
    duration_s: float
    """Since it was given nothing more to do."""


@dataclass(frozen=True, kw_only=True)
class SyncDone(Reading):
    """A version of the weights has reached a replica."""

    end_s: float
    gang_id: str
    duration_s: float
    """Since it was offered."""
    pause_s: float
    """The engine stood still."""


@dataclass(frozen=True, kw_only=True)
class HostPolled(Reading):
    """How busy the processors of a node with CPU slots are: there, slots share what they compute with."""

    time_s: float
    node: str
    busy_share: float
    """Of all its processors' time since the reading before, 0 to 1."""
