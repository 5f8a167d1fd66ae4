"""What happens in the run, told to the meter that policies read.

::

    StepEnded, GroupFinished, ReplicaHeard, WeightsTaken (the bus)  ──► readings ──► meter ──► figures
    moves (reallocation), processors (host watch)                       ──►        └──► MoveEvent: that it was made

The parts of the controller know slots; the measurement knows gangs and their types.
"""

from __future__ import annotations

from rlserve.controller.context import RunContext
from rlserve.controller.events import GroupFinished, ReplicaHeard, StepEnded, WeightsTaken
from rlserve.controller.gang_book import GangBook
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.measurement.readings import (
    GroupDone,
    HostPolled,
    MoveDone,
    Reading,
    ReplicaPolled,
    RolloutLeft,
    StepDone,
    SyncDone,
)
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Gang
from rlserve.tracking.events import MoveEvent


class Measuring:
    """Makes readings of events, and keeps the meter."""

    def __init__(self, run: RunContext, book: GangBook, meter: Meter) -> None:
        self._run = run
        self._book = book
        self._meter = meter
        run.events.subscribe(StepEnded, self._note_step)
        run.events.subscribe(GroupFinished, self._note_group)
        run.events.subscribe(ReplicaHeard, self._note_replica)
        run.events.subscribe(WeightsTaken, self._note_weights)

    def figures(self) -> Measurements:
        """Everything that was measured until now."""
        return self._meter.figures(self._run.clock.now())

    def note_move(self, gang: Gang, to: Role, *, begin_s: float, trainer_pause_s: float) -> None:
        """A gang has just changed its role."""
        end_s = self._run.clock.now()
        self._note(MoveDone(begin_s=begin_s, end_s=end_s, gang_id=gang.id, to=to, trainer_pause_s=trainer_pause_s))
        self._run.events.emit(
            MoveEvent(
                time_s=end_s,
                slot_id=gang.id,
                action="to_rollout" if to is Role.ROLLOUT else "to_train",
                begin_s=begin_s,
                trainer_pause_s=trainer_pause_s,
            )
        )

    def note_left(self, gang: Gang, *, begin_s: float, end_s: float) -> None:
        """A gang has left rollout, and is ready to join the trainers."""
        self._note(RolloutLeft(end_s=end_s, gang_id=gang.id, duration_s=end_s - begin_s))

    def note_host(self, node: str, busy_share: float) -> None:
        """The processors of a node with CPU slots were looked at."""
        self._note(HostPolled(time_s=self._run.clock.now(), node=node, busy_share=busy_share))

    def _note(self, reading: Reading) -> None:
        self._meter.note(reading)

    def _note_step(self, event: StepEnded) -> None:
        gangs = {gang.id: gang for gang in map(self._book.gang_of, event.slot_ids)}
        self._note(
            StepDone(
                end_s=self._run.clock.now(),
                types=tuple(gang.slots[0].type.name for gang in gangs.values()),
                wait_s=event.wait_s,
                weights_s=event.weights_s,
                work_s=event.work_s,
                num_groups=event.num_groups,
                num_tokens=event.num_tokens,
            )
        )

    def _note_group(self, event: GroupFinished) -> None:
        self._note(GroupDone(time_s=self._run.clock.now(), kept=event.kept, num_tokens=event.num_tokens))

    def _note_replica(self, event: ReplicaHeard) -> None:
        gang, stats = self._book.gang_of(event.slot_id), event.stats
        self._note(
            ReplicaPolled(
                time_s=self._run.clock.now(),
                gang_id=gang.id,
                type=gang.slots[0].type.name,
                since_s=event.since_s,
                num_running=stats.num_running,
                num_waiting=stats.num_waiting,
                kv_cache_usage=stats.kv_cache_usage,
                num_generated_tokens=event.num_generated_tokens,
                busy_s=stats.busy_s,
                running_s=stats.running_s,
            )
        )

    def _note_weights(self, event: WeightsTaken) -> None:
        self._note(
            SyncDone(
                end_s=self._run.clock.now(),
                gang_id=self._book.gang_of(event.slot_id).id,
                duration_s=event.duration_s,
                pause_s=event.pause_s,
            )
        )
