"""``rlserve compare`` and ``rlserve report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import begin_run, do_steps, finished_run

from rlserve.cli import main
from rlserve.cli.compare import differing_values
from rlserve.tracking.report.comparison import PANELS, draw_comparison
from rlserve.tracking.report.report_data import read_report_data

PNG = b"\x89PNG"


def test_two_runs_in_one_picture_with_what_differs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(place / "runs", "a", config="trainer: {learning_rate: 0.001}\nseed: 0\n")
    finished_run(place / "runs", "b_$1$", config="trainer: {learning_rate: 0.002}\nseed: 0\n", score=0.9)
    assert main(["compare", "a", "b_$1$"]) == 0
    text = capsys.readouterr().out
    assert (place / "comparison.png").read_bytes().startswith(PNG)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["held-out after"][-2:] == ["0.750", "0.900"]
    assert rows["trainer.learning_rate"][-2:] == ["0.001", "0.002"]
    assert "seed" not in rows
    assert str(place / "comparison.png") in text


def test_the_numbers_as_json_also_of_a_run_that_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(place / "runs", "a")
    _, tracker = begin_run(place / "runs", "b", num_steps=9)
    do_steps(tracker, 1, 2)
    assert main(["compare", "a", "b", "--output", "ab.svg", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differing_keys"] == {"num_steps": ["4", "9"]}
    assert found["numbers"]["b"]["step"] == "2/9"
    assert found["numbers"]["b"]["held-out after"] == "-"
    assert "throughput" in found["numbers"]["a"]
    assert (place / "ab.svg").is_file()


def test_what_cannot_be_compared_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(place / "runs", "a")
    finished_run(place / "runs", "b")
    for arguments, message in (
        (["a"], "name at least two runs"),
        (["a", "runs/a"], "is named twice"),
        (["a", "nosuch"], "no run 'nosuch'"),
        (["a", "b", "--output", "no/such/folder.png"], "cannot be written"),
        (["a", "b", "--output", "picture.docx"], "docx"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_runs_of_the_same_name_are_told_apart_by_their_folders(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("x", "y"):
        finished_run(place / folder, "run")
    assert main(["compare", "x/run", "y/run", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["numbers"]) == [str(place / "x/run"), str(place / "y/run")]


def test_every_run_has_a_line_in_every_panel_and_scores_stand_at_the_time_of_work(place: Path) -> None:
    runs = [read_report_data(finished_run(place / "runs", name)) for name in ("a", "b", "c")]
    figure = draw_comparison(runs)
    assert len(figure.axes) == len(PANELS)
    score_by_time = figure.axes[1].get_lines()
    assert [list(line.get_xdata()) for line in score_by_time] == [[0.0, 7.0]] * 3  # work began after 1 s of 8
    assert {line.get_color() for line in score_by_time} == {line.get_color() for line in figure.axes[0].get_lines()}
    assert len({line.get_color() for line in score_by_time}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def test_keys_that_one_run_does_not_know_differ() -> None:
    assert differing_values({"a": {"x": 1, "y": None}, "b": {"x": 1}}) == {"y": ["null", "-"]}


def test_the_report_is_made_anew(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished_run(place / "runs", "a")
    folder.report_png.write_bytes(b"old")
    assert main(["report", "a"]) == 0
    assert folder.report_png.read_bytes().startswith(PNG)
    assert "<html" in folder.report_html.read_text()
    assert capsys.readouterr().out.splitlines() == [str(folder.report_png), str(folder.report_html)]
