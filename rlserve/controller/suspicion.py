"""Replicas whose workers are suspect: they are given nothing new until they answer again.

::

    heartbeat ──► worker book ──WorkerStateEvent──► a worker of the gang is suspect ──► the router passes it over
                                                └─► none is any more ───────────────► it is given requests again

What such a replica has already stays with it: most suspects are slow, and answer.
"""

from __future__ import annotations

from rlserve.controller.events import EventBus
from rlserve.controller.gang_book import GangBook
from rlserve.controller.replicas import Replicas
from rlserve.pool.worker_table import WorkerState
from rlserve.tracking.events import WorkerStateEvent


class Suspicion:
    """Tells the replicas which of them to spare."""

    def __init__(self, events: EventBus, book: GangBook, replicas: Replicas) -> None:
        self._book = book
        self._replicas = replicas
        events.subscribe(WorkerStateEvent, self._note)

    def _note(self, event: WorkerStateEvent) -> None:
        if event.state not in (WorkerState.SUSPECT, WorkerState.HEALTHY):
            return
        gang = self._book.gang_of(event.slot_id)
        is_suspect = any(self._book.workers.state(slot_id) is WorkerState.SUSPECT for slot_id in gang.slot_ids)
        self._replicas.spare(gang.leader, is_suspect)
