"""What the gangs' time of a simulated run goes into: the events of a real run, for the ledger of a real run.

::

    states of gangs, steps, what replicas did, what became of tokens ──► events ──► rlserve.tracking.cost
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlserve.manager.gang_table import SERVING, GangState
from rlserve.manager.policies.base import GangView
from rlserve.simulate.clock import Clock
from rlserve.simulate.replica import Replica
from rlserve.tracking.cost.ledger import CostLedger
from rlserve.tracking.cost.statement import Statement
from rlserve.tracking.events import (
    LostWorkEvent,
    Owner,
    ReplicaEvent,
    RunEvent,
    SlotEvent,
    StageEvent,
    StepEvent,
    TokensEvent,
    WeightEvent,
    WorkerEvent,
)

OWNERS: Mapping[GangState, Owner] = {
    **dict.fromkeys(GangState, "moving"),
    GangState.TRAIN: "train",
    **dict.fromkeys(SERVING, "rollout"),
    GangState.DEAD: "dead",
    GangState.GONE: "gone",
}
"""Of a gang's slots, by its state."""


@dataclass(frozen=True, kw_only=True)
class SimulatedStep:
    """A training step that has just ended."""

    number: int
    since_s: float
    """When the step before had ended."""
    change_s: float
    """Of the time since then, changes of the group."""
    broken_s: float
    """Tries that a loss broke off."""
    work_s: float
    snapshot_s: float
    gang_ids: Sequence[str]
    num_groups: int
    num_trained_tokens: int
    """Prompts included."""
    num_generated_tokens: int
    """Of its groups."""


@dataclass(frozen=True)
class _Told:
    time_s: float
    busy_s: float
    num_tokens: int


class Spending:
    """Tells the ledger what happens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ledger = CostLedger()
        self._slots: dict[str, tuple[str, ...]] = {}
        """Slots of each gang."""
        self._told: dict[Replica, _Told] = {}
        self._num_dropped = 0
        self._ledger.note(RunEvent(time_s=0.0, begin_s=0.0, resumed=False, step=0))
        self._ledger.note(StageEvent(time_s=0.0, stage="training"))
        # All workers are up at once: gangs are counted from when they come.
        self._ledger.note(WorkerEvent(time_s=0.0, slot_id="", process_id=0, host=""))

    def statement(self) -> Statement:
        """What all time until now went into."""
        return self._ledger.statement(self._clock.now_s)

    def note_gang(self, gang: GangView, state: GangState) -> None:
        """A gang does something else from now on."""
        if gang.id not in self._slots:
            numbers = range(gang.num_slots)
            self._slots[gang.id] = tuple(f"{gang.id}#{number}" if number else gang.id for number in numbers)
        for slot_id in self._slots[gang.id]:
            self._ledger.note(
                SlotEvent(
                    time_s=self._clock.now_s,
                    slot_id=slot_id,
                    slot_type=gang.type,
                    gang_id=gang.id,
                    owner=OWNERS[state],
                    state=str(state),
                )
            )

    def note_replica(self, replica: Replica) -> None:
        """What a replica has done since it was told last; the caller has brought it up to now."""
        now_s = self._clock.now_s
        told = self._told.get(replica, _Told(replica.since_s, 0.0, 0))
        new = _Told(now_s, replica.busy_s, round(replica.num_generated))
        if new == told:
            return
        self._told[replica] = new
        self._ledger.note(
            ReplicaEvent(
                time_s=now_s,
                slot_id=replica.gang_id,
                begin_s=told.time_s,
                busy_s=new.busy_s - told.busy_s,
                running_s=0.0,
                num_tokens=new.num_tokens - told.num_tokens,
                longest_gap_s=0.0,
            )
        )

    def note_left(self, replica: Replica) -> None:
        """It is a replica no more, and was told of for the last time."""
        self._told.pop(replica, None)

    def note_pause(self, replica: Replica, pause_s: float) -> None:
        """A replica has stood still for weights."""
        self._ledger.note(
            WeightEvent(
                time_s=self._clock.now_s,
                version=replica.version,
                slot_id=replica.gang_id,
                duration_s=pause_s,
                pause_s=pause_s,
            )
        )

    def note_dropped(self, num_tokens: int) -> None:
        """A group was answered, and dropped."""
        self._num_dropped += num_tokens

    def note_lost(self, gang_id: str, num_tokens: float) -> None:
        """What a replica had made is lost with it."""
        self._ledger.note(
            LostWorkEvent(time_s=self._clock.now_s, slot_id=gang_id, num_requests=1, num_tokens=round(num_tokens))
        )

    def note_step(self, step: SimulatedStep) -> None:
        """A training step has ended."""
        now_s = self._clock.now_s
        self._ledger.note(
            TokensEvent(
                time_s=now_s,
                step=step.number,
                num_trained=step.num_generated_tokens,
                num_dropped=self._num_dropped,
            )
        )
        self._num_dropped = 0
        work_end_s = now_s - step.snapshot_s
        slot_ids = [slot_id for gang_id in step.gang_ids for slot_id in self._slots[gang_id]]
        self._ledger.note(
            StepEvent(
                time_s=now_s,
                step=step.number,
                begin_s=step.since_s,
                work_begin_s=work_end_s - step.work_s - step.broken_s,
                work_end_s=work_end_s,
                slot_ids=tuple(slot_ids),
                num_groups=step.num_groups,
                num_tokens=step.num_trained_tokens,
                change_wait_s=step.change_s,
                broken_s=step.broken_s,
            )
        )
