"""What every slot did when, its shares, and the trace that is made of it."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.tracking.config import TrackingConfig, WandbConfig
from rlserve.tracking.events import (
    Decision,
    Event,
    FailureEvent,
    ReplicaEvent,
    RolePhaseEvent,
    SlotEvent,
    StepEvent,
    WeightEvent,
)
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.timeline.activity import KINDS, activity
from rlserve.tracking.timeline.ownership import slot_timelines
from rlserve.tracking.timeline.trace import write_trace
from rlserve.tracking.timeline.usage import usage, usages
from rlserve.tracking.tracker import create_tracker

FILES_ONLY = TrackingConfig(wandb=WandbConfig(enabled=False), tensorboard=False)
OWNERS = {
    "train": "train",
    "rollout": "rollout",
    "dead": "dead",
    **dict.fromkeys(
        ("starting", "idle", "joining_train", "leaving_train", "joining_rollout", "leaving_rollout"), "moving"
    ),
}


def changes(time_s: float, slot_ids: tuple[str, ...], state: str) -> list[Event]:
    """The slots of one gang change hands."""
    return [
        SlotEvent(
            time_s=time_s,
            slot_id=slot_id,
            slot_type="H100",
            gang_id=slot_ids[0],
            owner=OWNERS[state],  # type: ignore[arg-type]
            state=state,
        )
        for slot_id in slot_ids
    ]


def step(number: int, begin_s: float, work_s: float, copy_s: float, end_s: float, *slot_ids: str) -> StepEvent:
    return StepEvent(
        time_s=end_s,
        step=number,
        begin_s=begin_s,
        work_begin_s=work_s,
        work_end_s=copy_s,
        slot_ids=slot_ids,
        num_groups=4,
        num_tokens=1000,
    )


def stretch(slot_id: str, begin_s: float, end_s: float, busy_s: float) -> ReplicaEvent:
    return ReplicaEvent(
        time_s=end_s,
        slot_id=slot_id,
        begin_s=begin_s,
        busy_s=busy_s,
        running_s=4 * busy_s,
        num_tokens=500,
        longest_gap_s=0.0,
    )


TRAINER, REPLICA = ("a/0",), ("b/0", "b/1")
STORY: list[Event] = [
    *changes(0, TRAINER, "starting"),
    *changes(0, REPLICA, "starting"),
    *changes(10, TRAINER, "train"),
    *changes(10, REPLICA, "rollout"),
    stretch("b/0", 10, 15, 3),
    step(1, 10, 14, 19, 20, "a/0"),
    WeightEvent(time_s=18, version=1, slot_id="b/0", duration_s=6, pause_s=1),
    stretch("b/0", 15, 20, 5),
    *changes(20, REPLICA, "leaving_rollout"),
    RolePhaseEvent(time_s=20.25, slot_id="b/0", phase="requests_moved"),
    RolePhaseEvent(time_s=20.75, slot_id="b/0", phase="memory_released"),
    *changes(21, REPLICA, "idle"),
    *changes(21, REPLICA, "joining_train"),
    RolePhaseEvent(time_s=23, slot_id="b/0", phase="step_boundary"),
    RolePhaseEvent(time_s=25, slot_id="b/0", phase="first_token"),
    *changes(24, REPLICA, "train"),
    step(2, 24, 24, 28, 28, "a/0", *REPLICA),
    FailureEvent(time_s=29, slot_id="b/1", reason="killed"),
    *changes(29, REPLICA, "dead"),
    *changes(30, TRAINER, "train"),
]
TRAINER_DID = [
    ("starting", 10),
    ("idle", 4),
    ("training", 5),
    ("syncing", 1),
    ("idle", 4),
    ("training", 4),
    ("idle", 2),
]
REPLICA_DID = [
    ("starting", 10),
    ("generating", 3),
    ("idle", 2),
    ("generating", 2),
    ("syncing", 1),
    ("generating", 2),
    ("switching", 4),
    ("training", 4),
    ("idle", 1),
    ("lost", 1),
]


def written(folder: RunFolder, events: list[Event]) -> list[dict[str, Any]]:
    tracker = create_tracker(FILES_ONLY, folder, {})
    for event in events:
        tracker.record(event)
    tracker.record(
        Decision(
            time_s=19.5,
            step=1,
            action="to_train",
            slot_id="b/0",
            queue_length=3,
            num_train=1,
            num_rollout=2,
            reason="the trainer is slower",
        )
    )
    tracker.log(1, {"training/time_s": 20.0, "rollout/tokens_per_s": 90.0, "rollout/num_buffered": 2})
    tracker.close(0)
    return [json.loads(line) for line in folder.events_file.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "story")


def lengths(slices: Any) -> list[tuple[str, float]]:
    """Kind and seconds, neighbours of one kind joined: a slice ends where its slot's state changes."""
    joined: list[tuple[str, float]] = []
    for each in slices:
        kind, duration_s = each.kind, each.duration_s
        if joined and joined[-1][0] == kind:
            duration_s += joined.pop()[1]
        joined.append((kind, duration_s))
    return joined


def test_what_every_slot_did(folder: RunFolder) -> None:
    events = written(folder, STORY)
    found = activity(slot_timelines(events, 30.0), events)
    assert lengths(found["a/0"]) == TRAINER_DID
    assert lengths(found["b/0"]) == REPLICA_DID
    assert lengths(found["b/1"]) == REPLICA_DID, "the slots of a gang do the same"


def test_shares_of_the_time(folder: RunFolder) -> None:
    events = written(folder, STORY)
    found = activity(slot_timelines(events, 30.0), events)
    whole = usage(found, 10.0, 30.0)
    assert whole.total_s() == pytest.approx(60)
    assert whole.of_role("train") == pytest.approx((9 + 2 * 4) / (20 + 2 * 5)), "capacity grows when slots join"
    assert whole.of_role("rollout") == pytest.approx(14 / 20)
    assert whole.bubble == pytest.approx(1 - (9 + 8 + 14) / 60)
    assert whole.total_s("switching") == pytest.approx(8)
    halves = usages(found, (10.0, 20.0, 30.0))
    assert [half.total_s() for half in halves] == [pytest.approx(30), pytest.approx(30)]
    assert halves[1].of_role("rollout") is None
    assert usages(found, (40.0, 50.0))[0].bubble is None


states = st.sampled_from(sorted(OWNERS))
moments = st.floats(0, 100).map(lambda value: round(value, 3))
spans = st.tuples(moments, moments, moments, moments).map(sorted)


@given(
    st.lists(st.tuples(moments, st.integers(0, 2), states), min_size=1, max_size=15),
    st.lists(spans, max_size=8),
    st.lists(st.tuples(spans, st.integers(0, 2)), max_size=8),
)
def test_time_adds_up_whatever_happened(owned: Any, steps: Any, stretches: Any) -> None:
    events: list[Any] = [
        each for time_s, slot, state in sorted(owned) for each in changes(time_s, (f"c/{slot}",), state)
    ]
    events += [step(1, *times, "c/0", "c/1") for times in steps]
    events += [stretch(f"c/{slot}", times[0], times[3], times[2] - times[1]) for times, slot in stretches]
    lines = [{"event": event.kind, **vars(event)} for event in events]
    rows = slot_timelines(lines, 100.0)
    found = activity(rows, lines)
    for row in rows:
        slices = found[row.slot_id]
        for before, after in pairwise(slices):
            assert before.end_s == after.start_s
        if row.phases:
            assert (slices[0].start_s, slices[-1].end_s) == (row.phases[0].start_s, row.phases[-1].end_s)
        assert all(piece.duration_s > 0 and piece.kind in KINDS for piece in slices)
    held_s = sum(phase.end_s - phase.start_s for row in rows for phase in row.phases)
    windows = usages(found, (0.0, 13.0, 50.0, 100.0))
    assert sum(window.total_s() for window in windows) == pytest.approx(held_s)


def test_the_trace_is_valid_and_its_slices_nest_and_add_up(folder: RunFolder) -> None:
    written(folder, STORY)
    write_trace(folder, folder.trace_file)
    content = json.loads(folder.trace_file.read_text())
    by_track: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in content["traceEvents"]:
        assert isinstance(event["name"], str)
        assert event["ph"] in "MXCi"
        if event["ph"] != "M":
            assert isinstance(event["ts"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            by_track[event["pid"], event["tid"]].append(event)
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
        if event["ph"] == "i":
            assert event["s"] in "gpt"
    for slices in by_track.values():
        open_until: list[int] = []
        for event in sorted(slices, key=lambda each: (each["ts"], -each["dur"])):
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1], f"{event} sticks out of the slice around it"
            open_until.append(end)
    names = {event["args"]["name"]: event["tid"] for event in content["traceEvents"] if event["name"] == "thread_name"}
    assert list(names) == ["a/0 (H100)", "b/0 (H100)", "b/1 (H100)", "training steps", "decisions"]
    for slot, did in (("a/0 (H100)", TRAINER_DID), ("b/1 (H100)", REPLICA_DID)):
        inner = [event for event in by_track[1, names[slot]] if event["name"] in KINDS and not event["args"]]
        spent: dict[str, int] = defaultdict(int)
        for event in inner:
            spent[event["name"]] += event["dur"]
        wanted: dict[str, int] = defaultdict(int)
        for kind, seconds in did:
            wanted[kind] += seconds * 1_000_000
        assert spent == wanted
        assert sum(spent.values()) == 30_000_000


def test_the_trace_has_the_parts_of_a_change_of_role(folder: RunFolder) -> None:
    written(folder, STORY)
    write_trace(folder, folder.trace_file)
    events = json.loads(folder.trace_file.read_text())["traceEvents"]
    parts = ("requests moved", "memory released", "step boundary", "first token")
    found = [(each["name"], each["tid"], each["ts"], each["dur"]) for each in events if each["name"] in parts]
    assert sorted(found, key=lambda each: each[1:3]) == [
        (name, track, begin_us, duration_us)
        for track in (2, 3)
        for name, begin_us, duration_us in (
            ("requests moved", 20_000_000, 250_000),
            ("memory released", 20_250_000, 500_000),
            ("step boundary", 21_000_000, 2_000_000),
        )
    ], "on both slots of the gang, and nothing of what came after it"


def test_the_trace_has_steps_decisions_losses_and_counters(folder: RunFolder) -> None:
    written(folder, STORY)
    write_trace(folder, folder.trace_file)
    events = json.loads(folder.trace_file.read_text())["traceEvents"]
    named = {(event["ph"], event["name"]): event for event in events}
    assert named["X", "step 2"]["args"]["slot_ids"] == ["a/0", "b/0", "b/1"]
    assert named["i", "b/0 to train"]["args"]["reason"] == "the trainer is slower"
    assert named["i", "b/1 lost"]["ts"] == 29_000_000
    assert named["C", "queue, prompt groups"]["args"] == {"waiting": 3}
    assert named["C", "buffer, prompt groups"]["args"] == {"buffered": 2}
    assert named["C", "tokens per second"]["args"] == {"generated": 90.0}
    assert named["C", "tokens per second, b/0"]["args"] == {"generated": 100.0}


def test_a_run_that_has_just_begun_has_a_trace(folder: RunFolder) -> None:
    write_trace(folder, folder.trace_file)
    assert {event["ph"] for event in json.loads(folder.trace_file.read_text())["traceEvents"]} == {"M"}
