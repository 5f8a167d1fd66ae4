"""The worker table: whether the worker process of each slot may be relied on. No process, no clock.

    restarting ──> stale ──> healthy ──> stale …          has a role, and the state that goes with it
                     │ ▲        │ ▲
                     ▼ │        ▼ │  it answers again: back to what it was
                     suspect ◄──┘        silent, or at a standstill
    any of these ──> dead ──> restarting                  its process is gone, or was ended
    any of all   ──> retired                              its slot has left the pool

A worker that comes up anew holds nothing of the run. So from dead to healthy there is no way but through stale: it has
taken the newest weights, or the trainers' state, before anything is asked of it. A suspicion changes nothing in that.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from rlserve.errors import IllegalTransitionError


class WorkerState(StrEnum):
    """Whether a worker may be relied on."""

    RESTARTING = "restarting"
    """Its process comes up, the first of its slot or a new one."""
    STALE = "stale"
    """It is up and holds nothing of the run that is of use: it has no role, or is on its way to one."""
    HEALTHY = "healthy"
    """It has a role, and took the state that goes with it."""
    SUSPECT = "suspect"
    """It has been silent for a while, or computes and makes no progress."""
    DEAD = "dead"
    """Its process is gone, or was ended."""
    RETIRED = "retired"
    """Its slot has left the pool."""


LEGAL_MOVES: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.RESTARTING: frozenset({WorkerState.STALE, WorkerState.DEAD, WorkerState.RETIRED}),
    WorkerState.STALE: frozenset({WorkerState.HEALTHY, WorkerState.SUSPECT, WorkerState.DEAD, WorkerState.RETIRED}),
    WorkerState.HEALTHY: frozenset({WorkerState.STALE, WorkerState.SUSPECT, WorkerState.DEAD, WorkerState.RETIRED}),
    WorkerState.SUSPECT: frozenset({WorkerState.STALE, WorkerState.HEALTHY, WorkerState.DEAD, WorkerState.RETIRED}),
    WorkerState.DEAD: frozenset({WorkerState.RESTARTING, WorkerState.RETIRED}),
    WorkerState.RETIRED: frozenset(),
}


class WorkerTable:
    """Owner of every worker's state."""

    def __init__(self) -> None:
        self._states: dict[str, WorkerState] = {}
        self._before: dict[str, WorkerState] = {}
        """What each suspect was, which is all that it can be again."""

    def add(self, slot_id: str) -> None:
        """A slot whose first worker is starting."""
        assert slot_id not in self._states, f"{slot_id} is already there"
        self._states[slot_id] = WorkerState.RESTARTING

    def state(self, slot_id: str) -> WorkerState:
        """How the worker of a slot is."""
        return self._states[slot_id]

    def move(self, slot_id: str, state: WorkerState) -> None:
        """Move a worker to ``state``.

        Raises:
            IllegalTransitionError: the table of legal moves does not have it, or it would make a suspect more than it
                was; nothing changes.
        """
        current = self._states[slot_id]
        if state not in LEGAL_MOVES[current]:
            raise IllegalTransitionError(f"the worker of {slot_id} cannot go from {current} to {state}")
        if current is WorkerState.SUSPECT and state in (WorkerState.STALE, WorkerState.HEALTHY):
            before = self._before[slot_id]
            if state is not before:
                raise IllegalTransitionError(f"the worker of {slot_id} was {before}, and answers again as that")
        if state is WorkerState.SUSPECT:
            self._before[slot_id] = current
        self._states[slot_id] = state

    def before_suspicion(self, slot_id: str) -> WorkerState:
        """What a suspect was."""
        return self._before[slot_id]
