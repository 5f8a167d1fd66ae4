"""How the workers of a run are. Every change is recorded.

::

    gang book   ──► added, has a role, has none, retired ──┐
    heartbeat   ──► heard, suspected, ended              ──┼──► worker table ──► WorkerStateEvent
    recovery    ──► ended, restarting                    ──┘
"""

from __future__ import annotations

from collections.abc import Iterable

from rlserve.controller.clock import RunClock
from rlserve.controller.events import EventBus
from rlserve.pool.worker_table import WorkerState, WorkerTable
from rlserve.tracking.events import WorkerStateEvent

_FROM_BEST = (
    WorkerState.HEALTHY,
    WorkerState.SUSPECT,
    WorkerState.STALE,
    WorkerState.RESTARTING,
    WorkerState.DEAD,
    WorkerState.RETIRED,
)


class WorkerBook:
    """Owns the table. Whoever tells what it has found need not know what others have: what is known is passed over."""

    def __init__(self, events: EventBus, clock: RunClock) -> None:
        self._events = events
        self._clock = clock
        self._table = WorkerTable()

    def state(self, slot_id: str) -> WorkerState:
        """How the worker of a slot is."""
        return self._table.state(slot_id)

    def worst(self, slot_ids: Iterable[str]) -> WorkerState:
        """The state of that worker which may be relied on least."""
        return max(map(self.state, slot_ids), key=_FROM_BEST.index)

    def add(self, slot_id: str) -> None:
        """A slot whose first worker is starting."""
        self._table.add(slot_id)
        self._record(slot_id, "added")

    def heard(self, slot_id: str) -> None:
        """A worker has answered: one that was starting is up, and a suspect is what it was."""
        match self.state(slot_id):
            case WorkerState.RESTARTING:
                self._move(slot_id, WorkerState.STALE, "is up")
            case WorkerState.SUSPECT:
                self._move(slot_id, self._table.before_suspicion(slot_id), "answers again")

    def suspected(self, slot_id: str, reason: str) -> None:
        """A worker is silent, or at a standstill."""
        if self.state(slot_id) in (WorkerState.HEALTHY, WorkerState.STALE):
            self._move(slot_id, WorkerState.SUSPECT, reason)

    def ended(self, slot_id: str, reason: str) -> None:
        """The process of a worker is gone."""
        if self.state(slot_id) not in (WorkerState.DEAD, WorkerState.RETIRED):
            self._move(slot_id, WorkerState.DEAD, reason)

    def restarting(self, slot_id: str) -> None:
        """A new process is started in place of one that is gone, or has to go."""
        self.ended(slot_id, "is replaced")
        self._move(slot_id, WorkerState.RESTARTING, "new worker")

    def has_role(self, slot_id: str, role: str) -> None:
        """A worker does what ``role`` says, with the state that it took for it: it has answered."""
        self.heard(slot_id)
        if self.state(slot_id) is WorkerState.STALE:
            self._move(slot_id, WorkerState.HEALTHY, role)

    def has_no_role(self, slot_id: str, reason: str) -> None:
        """What a worker holds is of no use any more."""
        if self.state(slot_id) is WorkerState.SUSPECT:
            self.heard(slot_id)
        if self.state(slot_id) is WorkerState.HEALTHY:
            self._move(slot_id, WorkerState.STALE, reason)

    def retired(self, slot_id: str, reason: str) -> None:
        """A slot has left the pool."""
        self._move(slot_id, WorkerState.RETIRED, reason)

    def _move(self, slot_id: str, state: WorkerState, reason: str) -> None:
        self._table.move(slot_id, state)
        self._record(slot_id, reason)

    def _record(self, slot_id: str, reason: str) -> None:
        self._events.emit(
            WorkerStateEvent(time_s=self._clock.now(), slot_id=slot_id, state=str(self.state(slot_id)), reason=reason)
        )
