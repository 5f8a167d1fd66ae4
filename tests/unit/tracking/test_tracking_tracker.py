from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import FILES_ONLY
from small_runs import slot_event

from rlserve.errors import DeadlineExceededError
from rlserve.tracking.background import BackgroundSink
from rlserve.tracking.base import Sink
from rlserve.tracking.events import BudgetEvent, Decision, EventLog, FailureEvent, WeightEvent, recorded_time_s
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.live import LiveFile
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.tracker import Tracker, create_tracker

WAIT_S = 30.0

DECISION = Decision(
    time_s=3.5,
    step=2,
    action="to_rollout",
    slot_id="cpu-a/1",
    queue_length=None,
    num_train=2,
    num_rollout=2,
    reason="queue 23 > 20",
    numbers={"queue_high": 20, "switch_s": None},
)


class FakeSink(Sink):
    """Records what it is given; raises at the chosen step or on close."""

    def __init__(self, name: str, raise_at: int | None = None, raise_on_close: bool = False) -> None:
        self.name = name
        self.raise_at = raise_at
        self.raise_on_close = raise_on_close
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.closed_with: int | None = None
        self.alerts: list[tuple[str, str]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.raise_at:
            raise ConnectionError("server is gone")
        self.logged.append((step, metrics))

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def close(self, exit_code: int) -> None:
        if self.raise_on_close:
            raise TimeoutError("upload takes too long")
        self.closed_with = exit_code


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run")


def test_metrics_reach_every_sink_as_plain_numbers(folder: RunFolder) -> None:
    sinks = [FakeSink("a"), FakeSink("b")]
    tracker = Tracker(sinks, EventLog(folder), LiveFile(folder.live_file))
    tracker.log(1, {"x": np.float32(0.5)})
    tracker.close(130)
    for sink in sinks:
        assert sink.logged == [(1, {"x": 0.5})]
        assert type(sink.logged[0][1]["x"]) is float
        assert sink.closed_with == 130


def test_a_sink_that_raises_is_left_out_with_one_warning(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = FakeSink("bad", raise_at=2), FakeSink("good")
    tracker = Tracker([bad, good], EventLog(folder), LiveFile(folder.live_file))
    for step in range(1, 5):
        tracker.log(step, {})
    tracker.close(0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["bad failed and is left out from here on: ConnectionError: server is gone"]
    assert [step for step, _ in bad.logged] == [1]
    assert bad.closed_with is None
    assert [step for step, _ in good.logged] == [1, 2, 3, 4]
    assert good.closed_with == 0


def test_a_sink_that_raises_on_close_does_not_keep_others_open(folder: RunFolder) -> None:
    bad, good = FakeSink("bad", raise_on_close=True), FakeSink("good")
    Tracker([bad, good], EventLog(folder), LiveFile(folder.live_file)).close(0)
    assert good.closed_with == 0


def test_an_event_log_that_cannot_write_stops_nothing(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    events = EventLog(folder)
    events.close(0, None)
    tracker = Tracker([], events, LiveFile(folder.live_file))
    tracker.record(DECISION)
    tracker.record(DECISION)
    assert [record.getMessage()[:20] for record in caplog.records] == ["the event log failed"]


def test_ctrl_c_is_not_swallowed(folder: RunFolder) -> None:
    class Interrupted(FakeSink):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tracker([Interrupted("x")], EventLog(folder), LiveFile(folder.live_file)).log(1, {})


def test_decisions_and_events_go_to_their_files(folder: RunFolder) -> None:
    tracker = create_tracker(FILES_ONLY, folder, {})
    tracker.record(DECISION)
    tracker.record(slot_event(4.0, "cpu-a/1", "moving"))
    tracker.record(FailureEvent(time_s=5.0, slot_id="cpu-a/1", reason="killed"))
    tracker.record(WeightEvent(time_s=6.0, version=3, slot_id=None, duration_s=0.25, pause_s=0.01))
    tracker.close(0)
    assert read_json_lines(folder.decisions_file) == [asdict(DECISION)]
    assert read_json_lines(folder.events_file) == [
        {
            "event": "slot",
            "time_s": 4.0,
            "slot_id": "cpu-a/1",
            "slot_type": "cpu-a",
            "gang_id": "cpu-a/1",
            "owner": "moving",
            "state": "starting",
        },
        {"event": "failure", "time_s": 5.0, "slot_id": "cpu-a/1", "reason": "killed"},
        {"event": "weights", "time_s": 6.0, "version": 3, "slot_id": None, "duration_s": 0.25, "pause_s": 0.01},
        {"event": "end", "time_s": 6.0, "exit_code": 0, "error": None},
    ]
    assert recorded_time_s(folder) == 6.0


def test_a_new_run_begins_at_time_zero_and_a_resumed_one_appends(folder: RunFolder) -> None:
    assert recorded_time_s(folder) == 0.0
    for _ in range(2):
        tracker = create_tracker(FILES_ONLY, folder, {}, resumed_step=1)
        tracker.record(DECISION)
        tracker.close(0)
    assert len(read_json_lines(folder.decisions_file)) == 2


# The background thread. The fakes wait for events, so nothing here depends on time.


class GatedSink(FakeSink):
    """Takes nothing until the gate is opened."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__("gated")
        self.gate = gate
        self.has_begun = threading.Event()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.has_begun.set()
        assert self.gate.wait(WAIT_S)
        super().log(step, metrics)


def test_background_sink_passes_everything_on_in_order() -> None:
    inner = FakeSink("inner")
    sink = BackgroundSink("inner", lambda: inner)
    for step in range(100):
        sink.log(step, {"x": 1.0})
    sink.close(3)
    assert [step for step, _ in inner.logged] == list(range(100))
    assert inner.closed_with == 3


def test_background_sink_that_hangs_takes_no_time_and_is_given_up() -> None:
    gate = threading.Event()
    inner = GatedSink(gate)
    sink = BackgroundSink("hanging", lambda: inner, close_timeout_s=0.01, max_num_waiting=5)
    sink.log(0, {})
    assert inner.has_begun.wait(WAIT_S)
    for step in range(1, 6):
        sink.log(step, {})
    with pytest.raises(DeadlineExceededError, match="hanging does not keep up: 5 entries wait"):
        sink.log(6, {})
    with pytest.raises(DeadlineExceededError, match=r"hanging was not closed after 0\.01 s"):
        sink.close(0)
    gate.set()


def test_background_sink_hands_the_failure_of_opening_to_the_caller() -> None:
    def refuse() -> Sink:
        raise ConnectionError("no such server")

    sink = BackgroundSink("refused", refuse)
    with pytest.raises(ConnectionError, match="no such server"):
        sink.close(0)
    with pytest.raises(ConnectionError, match="no such server"):
        sink.log(1, {})


def test_background_sink_hands_a_later_failure_to_the_caller() -> None:
    sink = BackgroundSink("bad", lambda: FakeSink("bad", raise_at=2))
    sink.log(2, {})
    with pytest.raises(ConnectionError, match="server is gone"):
        sink.close(0)


@pytest.mark.parametrize(
    ("exit_code", "error", "last"),
    [
        (0, None, []),
        (143, None, []),
        (2, "no such reward", [("run failed", "no such reward")]),
        (1, None, [("run failed", "its log says why")]),
    ],
)
def test_people_are_told_of_a_passed_budget_and_of_a_failure(
    folder: RunFolder, exit_code: int, error: str | None, last: list[tuple[str, str]]
) -> None:
    inner = FakeSink("far")
    tracker = Tracker([BackgroundSink("far", lambda: inner)], EventLog(folder, None), LiveFile(folder.live_file))
    tracker.record(DECISION)
    tracker.record(BudgetEvent(time_s=4.0, unit="gpu_hours", spent=2.5, budget=2.0, stops=True))
    tracker.close(exit_code, error)
    budget = ("budget passed", "2.5 is spent of cost.budget.gpu_hours=2; the run saves and ends")
    assert inner.alerts == [budget, *last]
