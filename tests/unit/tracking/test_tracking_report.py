from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FILES_ONLY, MakeRun, make_answers, make_summary
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text
from small_runs import slot_event

from rlserve.errors import DataError
from rlserve.tracking import colours, names
from rlserve.tracking.answers import Answer
from rlserve.tracking.events import RunEvent
from rlserve.tracking.report import build_report, png
from rlserve.tracking.report.bar_panels import bar_panels
from rlserve.tracking.report.curve_panels import step_panels, time_label, utilisation_panel
from rlserve.tracking.report.figure import draw, grid_of
from rlserve.tracking.report.html import write_html
from rlserve.tracking.report.report_data import ReportData, labelled_scores, queue_bounds, read_report_data
from rlserve.tracking.report.series import (
    Series,
    step_marks,
)
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.summary import write_summary
from rlserve.tracking.timeline.ownership import Interval, slot_timelines
from rlserve.tracking.tracker import create_tracker

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
    figure = json.dumps(json.loads(unpacked(page, "curves")))
    for part in ("H100/0", "H200/1", "rollout queue", "who has which slot"):
        assert part in figure, part
    for part in ("970 admitted", "It is 41, since"):
        assert part in page, part
    assert "a&lt;b&gt;run" in page
    assert "What is &lt;b&gt;12+30&lt;/b&gt; in $?" in page
    assert "<b>run" not in page
    assert "<b>12" not in page


def unpacked(page: str, element_id: str) -> str:
    """What one of the page's script elements holds compressed."""
    found = re.search(rf'<script id="{element_id}"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return gzip.decompress(base64.b64decode(found.group(1))).decode()


def test_the_page_is_small_and_needs_no_network(make_run: MakeRun) -> None:
    folder = make_run(num_slots=72, num_steps=3000)
    write_html(read_report_data(folder), folder.report_html)
    page = folder.report_html.read_text()
    assert len(page.encode()) <= 1_000_000
    assert not re.search(r"""(src|href)\s*=|https?://|@import""", page)
    library = unpacked(page, "library")
    assert "plotly.js (basic - minified)" in library[:100]
    assert "Licensed under the MIT license" in library[:200]
    assert json.loads(unpacked(page, "curves"))["layout"]["height"] > 1000


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


def of_data_set(data: ReportData) -> ReportData:
    """The same of a run that generates nothing."""
    lines = ({"step": line["step"], names.TIME: line.get(names.TIME), names.LOSS: 1.0} for line in data.metrics)
    return replace(data, metrics=tuple(lines), queue=Series((), ()), queue_bounds=None, moves=(), answers=())


@pytest.mark.parametrize("generates", [True, False])
@pytest.mark.parametrize(("num_slots", "num_steps"), [(2, 10), (16, 300), (72, 60)])
def test_no_words_of_the_picture_overlap_or_leave_the_page(
    make_run: MakeRun, num_slots: int, num_steps: int, generates: bool
) -> None:
    data = read_report_data(make_run(num_slots=num_slots, num_steps=num_steps))
    data = data if generates else of_data_set(data)
    with rc_context(png.STYLE):
        figure = png.draw(data)
        page = figure.bbox
        renderer = RecordingRenderer(page.width, page.height, figure.dpi)
        renderer.texts = []
        figure.draw(renderer)
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in renderer.texts if text.get_text()]
    assert len(boxes) > (80 if generates else 40)
    inside = [
        text
        for text, box in boxes
        if page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    ]
    assert inside == [text for text, _ in boxes]
    overlapping = [(one, other) for (one, box), (other, other_box) in combinations(boxes, 2) if box.overlaps(other_box)]
    assert not overlapping


def test_a_run_that_generates_nothing_has_no_panels_of_rollouts(make_run: MakeRun) -> None:
    data = of_data_set(read_report_data(make_run()))
    titles = [note.text for note in draw(data).layout.annotations if note.text.startswith("<b>")]
    assert [title.removeprefix("<b>").removesuffix("</b>") for title in titles] == [
        "loss",
        "who has which slot",
        "throughput, tokens/s",
        "utilisation: share of each role's slots' time computing",
        "slots' time, %",
    ]
    with rc_context(png.STYLE):
        assert len(png.draw(data).axes) == 7, "these, the headline and the answers"


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
    assert data.by_step(names.HELD_OUT) == Series((0, 60), (0.41, 0.97))
    assert data.by_step(names.REWARD).x == tuple(range(1, 61))
    assert data.steps.y == tuple(range(1, 61))
    assert data.queue_bounds == (6, 20)
    assert [slot.label for slot in data.slots] == ["H100/0", "H100/1", "H200/0", "H200/1"]
    assert [failure.reason for failure in data.failures] == ["killed"]
    assert [answer.reward for answer in data.answers] == [0, 1 / 7, 2 / 7, 5 / 7, 6 / 7, 1]
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
        events.append({"event": "slot", **vars(slot_event(time_s, f"cpu/{slot}", owner))})
    end_s = time_s + 1
    rows = slot_timelines(events, end_s)
    assert {row.slot_id for row in rows} == {event["slot_id"] for event in events}
    for row in rows:
        own = [event for event in events if event["slot_id"] == row.slot_id]
        assert row.intervals[0].start_s == own[0]["time_s"]
        assert row.intervals[-1] == Interval(owner=own[-1]["owner"], start_s=row.intervals[-1].start_s, end_s=end_s)
        for before, after in pairwise(row.intervals):
            assert before.end_s == after.start_s
            assert before.owner != after.owner


def test_a_type_that_is_not_in_the_slots_name_is_added() -> None:
    event = {"event": "slot", **vars(slot_event(0.0, "node1:0", "train")), "slot_type": "H100"}
    assert slot_timelines([event], 1.0)[0].label == "node1:0 (H100)"


@given(num_steps=st.integers(0, 3000), max_num_marks=st.integers(1, 20))
def test_marked_steps_are_few_and_round(num_steps: int, max_num_marks: int) -> None:
    steps = Series(tuple(2.0 * step for step in range(1, num_steps + 1)), tuple(range(1, num_steps + 1)))
    marks = step_marks(steps, max_num_marks, 0.0)
    assert len(marks) <= max_num_marks
    assert all(time_s == 2.0 * step for time_s, step in marks)
    for (_, one), (_, other) in pairwise(marks):
        assert str(other - one).rstrip("0") in ("1", "2", "5")


def test_marks_that_would_stand_on_each_other_are_left_out() -> None:
    steps = Series((0.0, 10.0, 11.0, 12.0, 20.0), (1, 2, 3, 4, 5))
    assert step_marks(steps, 10, 2.0) == [(0.0, 1), (10.0, 2), (12.0, 4), (20.0, 5)]


def test_time_begins_where_work_begins(make_run: MakeRun) -> None:
    data = read_report_data(make_run())
    assert data.start_s == 6.0
    assert "the first 6 s, preparation and start of the workers, are not drawn" in time_label(data)
    axis = next(draw(data).select_xaxes(row=grid_of(data).utilisation[0], col=1))
    assert tuple(axis.range) == (6.0, data.end_s)
    assert png.draw(data).axes[-6].get_xlim() == (6.0, data.end_s)


def test_after_a_stop_slots_belong_to_nobody_and_curves_are_broken(make_run: MakeRun) -> None:
    folder = make_run(num_slots=2, num_steps=10)
    stopped_s = read_report_data(folder).end_s
    tracker = create_tracker(FILES_ONLY, folder, {}, resumed_step=11)
    stopped_s += 1
    tracker.record(RunEvent(time_s=stopped_s, begin_s=stopped_s, resumed=True, step=10))
    tracker.record(slot_event(stopped_s + 20, "H100/0", "train"))
    tracker.log(11, {names.TIME: stopped_s + 30, names.STEP_S: 4.0, names.WAIT_S: 1.0, names.ROLLOUT_BUSY: 0.5})
    tracker.close(0)
    data = read_report_data(folder)
    assert data.resumes_s == (stopped_s,)
    first, second = data.slots
    assert [part.end_s for part in first.intervals[-2:]] == [stopped_s, stopped_s + 30]
    assert first.intervals[-1] == Interval(owner="train", start_s=stopped_s + 20, end_s=stopped_s + 30)
    assert second.intervals[-1].end_s == stopped_s, "its worker has not come up again"
    for name, last in ((names.ROLLOUT_BUSY, 0.5), (names.WAIT_S, 1.0)):
        points = data.by_time(name)
        assert np.isnan(points.y[-2])
        assert points.y[-1] == last
        assert np.isnan(points.y).sum() == 1
    for curve in utilisation_panel(data).curves:
        assert stopped_s in curve.points.x
        assert np.isnan(curve.points.y[curve.points.x.index(stopped_s)])
    build_report(folder)


def test_how_the_slots_were_used(make_run: MakeRun) -> None:
    data = read_report_data(make_run(num_slots=6))
    time, moved, stale, possible = bar_panels(data)
    assert set(time.labels) >= {"training", "generating", "idle", "syncing", "switching"}
    assert sum(time.bars[0].values) == pytest.approx(1)
    assert 0.3 < data.usage.of_role("train") < 0.9  # type: ignore[operator]
    judged = [move for move in data.gains if move.realised is not None][-8:]
    assert 0 < len(moved.labels) == len(judged)
    assert moved.bars[0].values == pytest.approx([move.predicted for move in judged])
    assert [move.realised for move in judged] == list(moved.bars[1].values)
    assert len(moved.bars[1].errors) == len(judged)
    assert data.staleness == {0: 121, 1: 59}, "three groups a step, one of them a step old but in the first"
    assert sum(stale.bars[0].values) == pytest.approx(1)
    realised, static, oracle = possible.bars[0].values
    assert realised == pytest.approx(4, rel=0.05)
    assert static <= oracle
    words = dict(data.summary)
    assert "bubble" in words["computing, of the slots' time"]
    assert "predicted +" in words["change of rate by moves in one direction"]
    assert any("split of the start" in note for note in data.notes)
    assert "if the best split at every moment cost nothing" in data.notes[-1]
    assert dict(data.headline)["slots in use"].endswith("%")


@pytest.mark.parametrize(("late", "verdict"), [(0.004, "the host kept up"), (0.2, "the host was the bottleneck")])
def test_a_paced_run_says_whether_it_counts_and_has_modelled_seconds(
    make_run: MakeRun, late: float, verdict: str
) -> None:
    folder = make_run(num_slots=4, num_steps=60)
    folder.write_config("pool:\n  slots:\n  - {type: paced-H100, count: 4}\n")
    write_summary(folder, make_summary(overrun_share=late, host_was_bottleneck=late > 0.03))
    data = read_report_data(folder)
    assert data.notes[0].startswith(f"Paced run: {late:.1%} of the modelled time late: {verdict}")
    assert time_label(data).startswith("modelled seconds")
    shown = dict(data.headline)
    assert "held-out score" not in shown
    assert "modelled time" in shown
    assert "answers cut" not in [curve.label for panel in step_panels(data) for curve in panel.curves]
    write_html(data, folder.report_html)
    assert verdict in folder.report_html.read_text()


def test_panels_over_steps_have_their_metrics(make_run: MakeRun) -> None:
    data = read_report_data(make_run(num_steps=10))
    drawn = [curve.points for panel in step_panels(data) for curve in panel.curves]
    wanted = (
        names.KL,
        names.KL_K3,
        names.ENTROPY,
        names.RESPONSE_LENGTH,
        names.CLIP_RATIO,
        names.FRAC_REWARD_ZERO_STD,
        names.LOG_PROB_DIFFERENCE,
        names.STALENESS_MAX,
    )
    assert drawn == [data.by_step(name) for name in wanted]
    assert all(len(points.x) == 10 for points in drawn)


def test_without_a_reference_the_kl_of_rollout_to_trainer_is_drawn(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "r")
    tracker = create_tracker(FILES_ONLY, folder, {})
    tracker.log(1, {names.BEHAVIOUR_KL: 0.25})
    tracker.close(0)
    panel = step_panels(read_report_data(folder))[0]
    assert panel.title == "KL, rollout to trainer, nats/token"
    assert [curve.points for curve in panel.curves] == [Series((1,), (0.25,))]


def test_held_out_scores_are_labelled_at_the_ends_and_never_rounded_to_one() -> None:
    assert labelled_scores(Series((0, 5, 10), (0.004, 0.5, 0.996))) == ("0.004", "", "0.996")
    assert labelled_scores(Series((0,), (1.0,))) == ("1.00",)
    assert labelled_scores(Series()) == ()


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("41\n\tor so", "reward 0.5: 1+1= → 41 or so  (reference 2)"),
        ("", "reward 0.5: 1+1= → (nothing)  (reference 2)"),
        ("答案", "reward 0.5: 1+1= → ??  (reference 2)"),
    ],
)
def test_an_answer_in_a_line(response: str, expected: str) -> None:
    (template,) = make_answers(1, 2)[:1]
    answer = replace(template, prompt="1+1=", response=response, reference="2", reward=0.5)
    assert png.answer_line(answer, 150) == expected


@given(st.text(max_size=400), st.text(max_size=400), st.one_of(st.none(), st.text(max_size=100)))
def test_the_line_of_an_answer_is_short(prompt: str, response: str, reference: str | None) -> None:
    answer: Answer = replace(make_answers(1, 2)[0], prompt=prompt, response=response, reference=reference)
    assert len(png.answer_line(answer, 150)) <= 160


def test_only_the_queue_length_rule_has_thresholds() -> None:
    assert queue_bounds({"manager": {"policy": "static", "queue_low": 1, "queue_high": 2}}) is None
    assert queue_bounds({}) is None


def test_a_run_that_learns_from_a_data_set_has_its_loss_in_the_place_of_rewards(make_run: MakeRun) -> None:
    folder = make_run(name="sft")
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    for line in lines:
        if names.REWARD in line:
            line[names.LOSS] = 2.0 - line.pop(names.REWARD)
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_summary(folder, replace(make_summary(), learns_from_data=True))
    data = read_report_data(folder)
    assert data.learning[0] == "loss"
    assert len(data.learning[2].y) > 1
    assert [label for label, _ in data.headline[:4]] == ["held-out score", "steps", "time", "workers lost"]
    assert not [label for label, _ in data.summary if label in ("slots moved", "engine against trainer")]
    build_report(folder)
    assert folder.report_html.exists()
