"""The stretches of each replica's time that a run writes down."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from controller_fakes import FakeClock, recorded, run_context, stats
from simulated_run import make_config, simulate
from small_runs import slot_event

from rlserve.controller.events import ReplicaHeard
from rlserve.controller.replica_log import MIN_STRETCH_S, STRETCH_SHARE, ReplicaLog
from rlserve.manager.config import StaticConfig
from rlserve.tracking.events import ReplicaEvent, StepEvent
from rlserve.tracking.run_folder import RunFolder


class Replica:
    """Half of its time it computes, with four samples."""

    def __init__(self) -> None:
        self.clock = FakeClock(0.0)
        self.run = run_context(clock=self.clock)
        self.log = ReplicaLog(self.run)
        self.told = recorded(self.run.events, ReplicaEvent)
        self.gaps_s: list[float] = []
        """Between its steps, as the next polls tell."""

    def serve(self, since_s: float, until_s: float) -> None:
        self.run.events.emit(slot_event(since_s, "b/0", "rollout"))
        while self.clock.now_s < until_s:
            self.clock.now_s += 0.5
            age_s = self.clock.now_s - since_s
            gap_s = self.gaps_s.pop(0) if self.gaps_s else 0.0
            heard = replace(stats(), busy_s=age_s / 2, running_s=2 * age_s, longest_gap_s=gap_s)
            self.run.events.emit(
                ReplicaHeard(slot_id="b/0", since_s=since_s, stats=heard, num_generated_tokens=int(10 * age_s))
            )

    def leave(self) -> None:
        self.run.events.emit(slot_event(self.clock.now_s, "b/0", "moving"))


def test_stretches_follow_on_each_other_and_miss_nothing() -> None:
    replica = Replica()
    replica.serve(0.0, 7.5)
    replica.leave()
    replica.clock.now_s = 10.0
    replica.serve(10.0, 13.0)
    replica.leave()
    assert [(told.begin_s, told.time_s) for told in replica.told] == [
        (0, 2),
        (2, 4),
        (4, 6),
        (6, 7.5),
        (10, 12),
        (12, 13),
    ]
    for told in replica.told:
        duration_s = told.time_s - told.begin_s
        assert (told.busy_s, told.running_s, told.num_tokens) == (duration_s / 2, 2 * duration_s, 10 * duration_s)


def test_a_replica_that_is_heard_on_its_way_out_is_not_told_of_twice() -> None:
    replica = Replica()
    replica.serve(0.0, 7.0)
    replica.leave()
    replica.serve(0.0, 8.5)  # its last answers
    replica.leave()
    assert [(told.begin_s, told.time_s) for told in replica.told][-2:] == [(6, 7), (7, 8.5)]
    assert sum(told.num_tokens for told in replica.told) == 85


def test_the_longest_gap_of_a_stretch_is_that_of_all_polls_in_it() -> None:
    replica = Replica()
    replica.gaps_s = [0.01, 0.5, 0.02, 0.02, 0.03, 0.01, 0.04]
    replica.serve(0.0, 3.5)
    replica.leave()
    assert [told.longest_gap_s for told in replica.told] == [0.5, 0.04]


def test_a_long_run_has_longer_stretches() -> None:
    replica = Replica()
    replica.serve(0.0, 3000.0)
    last = replica.told[-1]
    assert last.time_s - last.begin_s == pytest.approx(3000 * STRETCH_SHARE, rel=0.1)
    assert len(replica.told) < 300 + 300 * 2
    assert all(told.time_s - told.begin_s >= MIN_STRETCH_S for told in replica.told)


def test_a_whole_run_tells_of_its_steps_and_replicas(tmp_path: Path) -> None:
    run = simulate(
        make_config(num_steps=20, manager=StaticConfig()), RunFolder.create(tmp_path, "simulated"), num_slots=4
    )
    steps = run.tracker.of(StepEvent)
    assert [step.step for step in steps] == list(range(1, 21))
    for step in steps:
        assert step.begin_s <= step.work_begin_s < step.work_end_s <= step.time_s
        assert step.slot_ids == ("cpu/0", "cpu/1")
    for before, after in pairwise(steps):
        assert before.time_s <= after.begin_s
    stretches = run.tracker.of(ReplicaEvent)
    assert {stretch.slot_id for stretch in stretches} == {"cpu/2", "cpu/3"}
    assert sum(stretch.num_tokens for stretch in stretches) > 0
