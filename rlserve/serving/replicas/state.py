"""How a replica stands: its states, the legal moves between them, and what its signs of life say. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlserve.errors import IllegalTransitionError
from rlserve.serving.config import HealthConfig


class ReplicaState(StrEnum):
    """Only a replica that is ready gets requests."""

    STARTING = "starting"
    """Its process loads the model."""
    READY = "ready"
    SUSPECT = "suspect"
    """Without a sign of life for a while: it keeps what it has."""
    DRAINING = "draining"
    """Not wanted any more: it gets nothing new, and ends once its answers have."""
    IDLE = "idle"
    """Not wanted: it has no process."""
    LOST = "lost"
    """Its process is gone; what it had goes on elsewhere. Another is started in its place after a pause."""
    FAILED = "failed"
    """Given up: it could not be started too often."""
    STOPPED = "stopped"
    """The server ends."""


_MOVES: dict[ReplicaState, frozenset[ReplicaState]] = {
    ReplicaState.STARTING: frozenset({ReplicaState.READY, ReplicaState.IDLE, ReplicaState.LOST, ReplicaState.STOPPED}),
    ReplicaState.READY: frozenset(
        {ReplicaState.SUSPECT, ReplicaState.DRAINING, ReplicaState.LOST, ReplicaState.STOPPED}
    ),
    ReplicaState.SUSPECT: frozenset(
        {ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.LOST, ReplicaState.STOPPED}
    ),
    ReplicaState.DRAINING: frozenset({ReplicaState.READY, ReplicaState.IDLE, ReplicaState.LOST, ReplicaState.STOPPED}),
    ReplicaState.IDLE: frozenset({ReplicaState.STARTING, ReplicaState.STOPPED}),
    ReplicaState.LOST: frozenset({ReplicaState.STARTING, ReplicaState.IDLE, ReplicaState.FAILED, ReplicaState.STOPPED}),
    ReplicaState.FAILED: frozenset({ReplicaState.STOPPED}),
    ReplicaState.STOPPED: frozenset(),
}


def check_move(name: str, old: ReplicaState, new: ReplicaState) -> None:
    """Raise ``IllegalTransitionError`` for a move that the table does not have."""
    if new not in _MOVES[old]:
        raise IllegalTransitionError(f"replica {name} cannot go from {old} to {new}")


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What is known of a replica's process, in seconds of one clock."""

    state: ReplicaState
    started_s: float
    last_beat_s: float
    last_progress_s: float
    """When its engine last made a step, or had nothing to do."""


def judge(signs: Signs, now_s: float, config: HealthConfig) -> tuple[ReplicaState, str]:
    """The state that a replica should be in, and why if it is another one."""
    if signs.state is ReplicaState.STARTING:
        if now_s - signs.started_s > config.start_timeout_s:
            return ReplicaState.LOST, f"not loaded after health.start_timeout_s={config.start_timeout_s:g}"
        return signs.state, ""
    if signs.state not in (ReplicaState.READY, ReplicaState.SUSPECT, ReplicaState.DRAINING):
        return signs.state, ""
    silent_s = now_s - signs.last_beat_s
    if silent_s > config.lost_after_s:
        return ReplicaState.LOST, f"no sign of life for {silent_s:.1f} s"
    if now_s - signs.last_progress_s > config.stuck_after_s:
        return ReplicaState.LOST, f"work and no step for health.stuck_after_s={config.stuck_after_s:g}"
    if signs.state is ReplicaState.DRAINING:
        return signs.state, ""
    if silent_s > config.suspect_after_s:
        return ReplicaState.SUSPECT, f"no sign of life for {silent_s:.1f} s"
    return ReplicaState.READY, ""


def restart_pause_s(num_failed_starts: int) -> float:
    """Before a lost replica is started again: none at first, then 1, 2, 4 … 30 seconds."""
    return 0.0 if num_failed_starts == 0 else min(2.0 ** (num_failed_starts - 1), 30.0)
