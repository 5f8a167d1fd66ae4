"""Which gangs a run has and what each is doing. Every change is recorded, slot by slot."""

from __future__ import annotations

from collections.abc import Iterable

from rlserve.controller.context import RunContext
from rlserve.controller.worker_book import WorkerBook
from rlserve.manager.gang_table import SERVING, GangState, GangTable
from rlserve.manager.roles import Role
from rlserve.pool.base import WorkerInfo
from rlserve.pool.gangs import Gang
from rlserve.tracking.events import Owner, SlotEvent, WorkerEvent

ROLES = {GangState.TRAIN: Role.TRAIN, **dict.fromkeys(SERVING, Role.ROLLOUT)}
_OWNERS: dict[GangState, Owner] = {
    GangState.TRAIN: "train",
    **dict.fromkeys(SERVING, "rollout"),
    GangState.DEAD: "dead",
    GangState.GONE: "gone",
}


class GangBook:
    """Owns the gangs and their table."""

    def __init__(self, run: RunContext, gangs: Iterable[Gang]) -> None:
        self._run = run
        self._gangs: dict[str, Gang] = {}
        self._gang_of: dict[str, Gang] = {}
        self.table = GangTable()
        self.workers = WorkerBook(run.events, run.clock)
        self.leaving: dict[str, str] = {}
        """Gangs that are there for the last time, with the reason: their node leaves, or has left."""
        self.given_back: set[str] = set()
        """Of those, gangs whose slots may be taken again once they are gone: they were of no use, or were lent."""
        self.repairing: set[str] = set()
        """Gangs that train while a worker of theirs is replaced."""
        self.held_until_s: dict[str, float] = {}
        """Gangs that were moved by hand, and how long the split is left as it is for it."""
        for gang in gangs:
            self.add(gang)

    def __getitem__(self, gang_id: str) -> Gang:
        return self._gangs[gang_id]

    @property
    def present(self) -> tuple[Gang, ...]:
        """Gangs that are not gone, in order of being added."""
        return tuple(gang for gang in self._gangs.values() if self.state(gang) is not GangState.GONE)

    @property
    def roles(self) -> dict[str, Role]:
        """Of each gang that has one, by gang id."""
        return {gang.id: ROLES[state] for gang in self.present if (state := self.state(gang)) in ROLES}

    @property
    def gone(self) -> tuple[Gang, ...]:
        """Gangs whose nodes have left."""
        return tuple(gang for gang in self._gangs.values() if self.state(gang) is GangState.GONE)

    def add(self, gang: Gang) -> None:
        """Add a gang, whose workers are starting."""
        self._gangs[gang.id] = gang
        self._gang_of |= dict.fromkeys(gang.slot_ids, gang)
        for slot_id in gang.slot_ids:
            self.workers.add(slot_id)
        self.table.add(gang.id, num_slots=len(gang.slots), time_s=self._run.clock.now())
        self._record(gang)

    def gang_of(self, slot_id: str) -> Gang:
        """The gang that a slot belongs to."""
        return self._gang_of[slot_id]

    def state(self, gang: Gang) -> GangState:
        """What a gang is doing."""
        return self.table.state(gang.id)

    def move(self, gang: Gang, state: GangState, reason: str) -> None:
        """Move a gang to another state, and wake whoever waits for one."""
        self.table.move(gang.id, state, time_s=self._run.clock.now(), reason=reason)
        self._record(gang)
        self._note_workers(gang, state, reason)
        self._run.changed.notify()

    def note_worker(self, info: WorkerInfo) -> None:
        """A worker has come up."""
        self.workers.heard(info.slot_id)
        self._run.events.emit(
            WorkerEvent(time_s=self._run.clock.now(), slot_id=info.slot_id, process_id=info.process_id, host=info.host)
        )

    def held_for_s(self) -> float:
        """How long the split is still held by hand; 0 where it is not."""
        now = self._run.clock.now()
        return max((until - now for until in self.held_until_s.values() if until > now), default=0.0)

    def has_other(self, gang: Gang) -> bool:
        """Whether another gang, which stays, is in the same state."""
        return any(each not in self.leaving for each in self.table.in_state(self.state(gang)) if each != gang.id)

    def _note_workers(self, gang: Gang, state: GangState, reason: str) -> None:
        for slot_id in gang.slot_ids:
            match state:
                case GangState.TRAIN | GangState.ROLLOUT:
                    self.workers.has_role(slot_id, str(state))
                case GangState.IDLE | GangState.DEAD:
                    self.workers.has_no_role(slot_id, reason)
                case GangState.GONE:
                    self.workers.retired(slot_id, reason)

    def _record(self, gang: Gang) -> None:
        owner = _OWNERS.get(self.state(gang), "moving")
        for slot in gang.slots:
            self._run.events.emit(
                SlotEvent(
                    time_s=self._run.clock.now(),
                    slot_id=slot.id,
                    slot_type=slot.type.name,
                    gang_id=gang.id,
                    owner=owner,
                    state=str(self.state(gang)),
                )
            )
