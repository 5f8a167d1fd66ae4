from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeRun
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from rlserve.errors import DataError
from rlserve.tracking import colours
from rlserve.tracking.report import build_report, png
from rlserve.tracking.report.data import (
    Interval,
    Series,
    merge_steps,
    queue_bounds,
    read_report_data,
    running_mean,
    series,
    slot_rows,
    step_marks,
)
from rlserve.tracking.report.html import draw
from rlserve.tracking.run_folder import RunFolder

OWNERS = ("train", "rollout", "moving", "dead")


def share_of_colour(path: Path, colour: str) -> float:
    pixels = imread(path)[..., :3]
    return float((np.abs(pixels - np.array(to_rgb(colour))).max(axis=-1) < 0.02).mean())


def test_report_of_a_finished_run(make_run: MakeRun) -> None:
    folder = make_run(name="a<b>run")
    build_report(folder)
    for owner in ("train", "rollout", "moving", "dead"):
        assert share_of_colour(folder.report_png, colours.OWNER_COLOURS[owner]) > 1e-4, owner
    page = folder.report_html.read_text()
    for part in ("H100\\u002f0", "H200\\u002f1", "rollout queue", "who has which slot", "970 admitted"):
        assert part in page or part.replace("\\u002f", "/") in page, part
    assert "a&lt;b&gt;run" in page
    assert "<b>run" not in page
    assert "<script src" not in page, "the page needs no network"


def test_report_can_be_made_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "begun")
    build_report(folder)
    assert folder.report_png.stat().st_size > 10_000
    assert "begun" in folder.report_html.read_text()


def test_report_of_a_damaged_run_names_the_line(make_run: MakeRun) -> None:
    folder = make_run()
    with folder.events_file.open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(DataError, match=r"events\.jsonl:\d+: is not JSON"):
        build_report(folder)


class RecordingRenderer(RendererAgg):
    """Remembers every text that is really drawn (ticks out of sight are not)."""

    texts: list[Text]

    def draw_text(self, *args: Any, mtext: Text | None = None, **options: Any) -> None:
        assert mtext is not None, "a text of several lines"
        self.texts.append(mtext)
        super().draw_text(*args, mtext=mtext, **options)


@pytest.mark.parametrize(("num_slots", "num_steps"), [(2, 10), (4, 60), (16, 1000), (72, 200)])
def test_no_words_of_the_picture_overlap_or_leave_the_page(make_run: MakeRun, num_slots: int, num_steps: int) -> None:
    data = read_report_data(make_run(num_slots=num_slots, num_steps=num_steps))
    with rc_context(png.STYLE):
        figure = png.draw(data)
        page = figure.bbox
        renderer = RecordingRenderer(page.width, page.height, figure.dpi)
        renderer.texts = []
        figure.draw(renderer)
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in renderer.texts if text.get_text()]
    assert len(boxes) > 40
    inside = [
        text
        for text, box in boxes
        if page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    ]
    assert inside == [text for text, _ in boxes]
    overlapping = [(one, other) for (one, box), (other, other_box) in combinations(boxes, 2) if box.overlaps(other_box)]
    assert not overlapping


def test_html_draws_every_interval_and_every_move(make_run: MakeRun) -> None:
    data = read_report_data(make_run(num_slots=6))
    traces = {trace.name: trace for trace in draw(data).data if trace.name}
    for owner in OWNERS:
        expected = [
            (slot.label, part.start_s, part.end_s)
            for slot in data.slots
            for part in slot.intervals
            if part.owner == owner
        ]
        bars = traces[owner]
        assert list(zip(bars.y, bars.base, bars.customdata, strict=True)) == expected
    assert data.moves
    for action in ("to_rollout", "to_train"):
        expected_moves = [(move.time_s, move.queue_length) for move in data.moves if move.action == action]
        marks = traces[f"slot {action.replace('_', ' ')}"]
        assert list(zip(marks.x, marks.y, strict=True)) == expected_moves


def test_data_of_a_run(make_run: MakeRun) -> None:
    data = read_report_data(make_run(num_slots=4, num_steps=60))
    assert data.held_out == Series((0, 60), (0.41, 0.97))
    assert data.reward.x == tuple(range(1, 61))
    assert data.steps.y == tuple(range(1, 61))
    assert data.queue_bounds == (6, 20)
    assert [slot.label for slot in data.slots] == ["H100/0", "H100/1", "H200/0", "H200/1"]
    assert [failure.reason for failure in data.failures] == ["killed"]
    assert dict(data.headline)["held-out score"] == "0.41 → 0.97"


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(OWNERS), st.integers(0, 5)), max_size=40
    )  # slot, owner, seconds since the event before
)
def test_a_slot_has_one_owner_from_its_first_event_to_the_end(changes: list[tuple[int, str, int]]) -> None:
    events, time_s = [], 0.0
    for slot, owner, gap_s in changes:
        time_s += gap_s
        event = {"event": "slot", "time_s": time_s, "slot_id": f"cpu/{slot}", "slot_type": "cpu", "owner": owner}
        events.append(event)
    end_s = time_s + 1
    rows = slot_rows(events, end_s)
    assert {row.slot_id for row in rows} == {event["slot_id"] for event in events}
    for row in rows:
        own = [event for event in events if event["slot_id"] == row.slot_id]
        assert row.intervals[0].start_s == own[0]["time_s"]
        assert row.intervals[-1] == Interval(owner=own[-1]["owner"], start_s=row.intervals[-1].start_s, end_s=end_s)
        for before, after in pairwise(row.intervals):
            assert before.end_s == after.start_s
            assert before.owner != after.owner


def test_a_type_that_is_not_in_the_slots_name_is_added() -> None:
    event = {"event": "slot", "time_s": 0.0, "slot_id": "node1:0", "slot_type": "H100", "owner": "train"}
    assert slot_rows([event], 1.0)[0].label == "node1:0 (H100)"


@given(num_steps=st.integers(0, 3000), max_num_marks=st.integers(1, 20))
def test_marked_steps_are_few_and_round(num_steps: int, max_num_marks: int) -> None:
    steps = Series(tuple(2.0 * step for step in range(1, num_steps + 1)), tuple(range(1, num_steps + 1)))
    marks = step_marks(steps, max_num_marks)
    assert len(marks) <= max_num_marks
    assert all(time_s == 2.0 * step for time_s, step in marks)
    for (_, one), (_, other) in pairwise(marks):
        assert str(other - one).rstrip("0") in ("1", "2", "5")


def test_running_mean_keeps_the_length_and_a_constant() -> None:
    assert running_mean([]) == []
    assert running_mean([3.0] * 100) == [3.0] * 100
    assert running_mean([0.0, 3.0, 0.0]) == [1.0, 1.0, 1.0]


def test_steps_logged_in_parts_are_merged_and_unknown_numbers_left_out() -> None:
    metrics = merge_steps([{"step": 2, "x": 1.0}, {"step": 1, "x": None}, {"step": 2, "y": 3.0}])
    assert metrics == [{"step": 1, "x": None}, {"step": 2, "x": 1.0, "y": 3.0}]
    assert series(metrics, "step", "x") == Series((2,), (1.0,))


def test_only_the_queue_length_rule_has_thresholds() -> None:
    assert queue_bounds({"manager": {"policy": "static", "queue_low": 1, "queue_high": 2}}) is None
    assert queue_bounds({}) is None
