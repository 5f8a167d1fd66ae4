"""What the meter is told: the slots of events are gangs there, each of its type."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from controller_fakes import FakeClock, make_gang, recorded, run_context, stats
from virtual_time import run_virtual

from rlserve.controller.events import GroupFinished, ReplicaHeard, StepEnded, WeightsTaken
from rlserve.controller.gang_book import GangBook
from rlserve.controller.host_watch import HostWatch
from rlserve.controller.measuring import Measuring
from rlserve.controller.observation import measured_metrics
from rlserve.manager.measurement.figures import Measurements, ReplicaRate
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.measurement.readings import (
    GroupDone,
    HostPolled,
    MoveDone,
    Reading,
    ReplicaPolled,
    StepDone,
    SyncDone,
)
from rlserve.manager.roles import Role
from rlserve.tracking.events import MoveEvent

PAIR = make_gang("t0", "t1")


class FakeMeter(Meter):
    def __init__(self) -> None:
        super().__init__()
        self.readings: list[Reading] = []

    def note(self, reading: Reading) -> None:
        self.readings.append(reading)


class Setting:
    """A gang of two slots trains, one of a single slot rolls out; it is second 10."""

    def __init__(self) -> None:
        self.context = run_context(clock=FakeClock(10.0))
        self.meter = FakeMeter()
        book = GangBook(self.context, [PAIR, make_gang("r0")])
        self.measuring = Measuring(self.context, book, self.meter)


def test_each_event_becomes_the_reading_of_its_gang() -> None:
    setting = Setting()
    emit = setting.context.events.emit
    emit(
        StepEnded(slot_ids=("t0", "t1"), num_groups=4, num_tokens=90, wait_s=1.0, weights_s=0.5, work_s=3.0),
    )
    emit(GroupFinished(kept=False, num_tokens=30))
    heard = replace(stats(), num_running=5, num_waiting=2, kv_cache_usage=0.25, busy_s=6.0, running_s=24.0)
    emit(ReplicaHeard(slot_id="r0", since_s=2.0, stats=heard, num_generated_tokens=700))
    emit(WeightsTaken(slot_id="r0", version=3, duration_s=0.75, pause_s=0.125))
    setting.measuring.note_move(PAIR, Role.ROLLOUT, begin_s=8.0, trainer_pause_s=0.5)
    setting.measuring.note_host("here", 0.5)
    assert setting.meter.readings == [
        StepDone(end_s=10.0, types=("cpu",), wait_s=1.0, weights_s=0.5, work_s=3.0, num_groups=4, num_tokens=90),
        GroupDone(time_s=10.0, kept=False, num_tokens=30),
        ReplicaPolled(
            time_s=10.0,
            gang_id="r0",
            type="cpu",
            since_s=2.0,
            num_running=5,
            num_waiting=2,
            kv_cache_usage=0.25,
            num_generated_tokens=700,
            busy_s=6.0,
            running_s=24.0,
        ),
        SyncDone(end_s=10.0, gang_id="r0", duration_s=0.75, pause_s=0.125),
        MoveDone(begin_s=8.0, end_s=10.0, gang_id="t0+t1", to=Role.ROLLOUT, trainer_pause_s=0.5),
        HostPolled(time_s=10.0, node="here", busy_share=0.5),
    ]


def test_a_move_is_recorded_once_it_is_made() -> None:
    setting = Setting()
    found = recorded(setting.context.events, MoveEvent)
    setting.measuring.note_move(PAIR, Role.TRAIN, begin_s=8.0, trainer_pause_s=0.5)
    assert found == [MoveEvent(time_s=10.0, slot_id="t0+t1", action="to_train", begin_s=8.0, trainer_pause_s=0.5)]


def test_processors_are_asked_once_a_second_and_the_first_answer_is_not_used() -> None:
    async def scenario() -> list[Reading]:
        setting, answers = Setting(), iter([0.9, 0.25, 0.5, 0.75])
        watch = HostWatch(setting.context, setting.measuring, lambda: {"here": next(answers)})
        watching = asyncio.create_task(watch.watch())
        await asyncio.sleep(2.5)
        watching.cancel()
        return setting.meter.readings

    shares = [reading.busy_share for reading in run_virtual(scenario()) if isinstance(reading, HostPolled)]
    assert shares == [0.25, 0.5]


def test_processors_are_asked_at_the_end_of_a_first_step_that_comes_sooner() -> None:
    setting, answers = Setting(), iter([0.25, 0.5])
    HostWatch(setting.context, setting.measuring, lambda: {"here": next(answers)})
    for _ in range(2):
        setting.context.events.emit(
            StepEnded(slot_ids=("t0", "t1"), num_groups=4, num_tokens=90, wait_s=0.1, weights_s=0.1, work_s=0.1)
        )
    assert [reading.busy_share for reading in setting.meter.readings if isinstance(reading, HostPolled)] == [0.25]


def test_metrics_are_of_what_was_measured_and_nothing_else() -> None:
    assert measured_metrics(Measurements()) == {}
    replica: Any = {"type": "cpu", "num_running": 1, "num_waiting": 0, "kv_cache_usage": 0.0, "busy_share": 1.0}
    rates = tuple(
        ReplicaRate(gang_id=name, tokens_per_s=None, mean_running=batch, **replica)
        for name, batch in (("a", 4.0), ("b", None), ("c", 8.0))
    )
    assert measured_metrics(Measurements(replicas=rates, kept_share=0.5, host_busy_share=0.75)) == {
        "rollout/kept_share": 0.5,
        "rollout/mean_batch": 6.0,
        "pool/host_busy_share": 0.75,
    }
