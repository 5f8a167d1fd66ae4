"""``rlserve list`` and ``rlserve status``: every state that a run can be found in."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_runs import begin_run, do_steps, end_run, finished_run

from rlserve.cli import main
from rlserve.cli.list import age
from rlserve.tracking.logs import log_to
from rlserve.tracking.owner import OWNER_FILE, owned, this_process
from rlserve.tracking.run_folder import RunFolder


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    assert main(["list", "--json", *arguments]) == 0
    return {state["name"]: state for state in json.loads(capsys.readouterr().out)}


def status(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["status", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def save_checkpoint(folder: RunFolder, step: int) -> Path:
    checkpoint = folder.checkpoints / f"step_{step:06d}"
    (checkpoint / "policy").mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    return checkpoint


def test_every_state_is_told_apart(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = place / "runs"
    finished_run(runs, "done")
    for name, exit_code in (("stopped", 143), ("failed", 1), ("refused", 2)):
        _, tracker = begin_run(runs, name)
        do_steps(tracker, 1, 2)
        tracker.close(exit_code)
    gone, _ = begin_run(runs, "gone")
    (gone.path / OWNER_FILE).write_text(json.dumps(asdict(replace(this_process(), process_id=2**22 + 5))))
    alive, _ = begin_run(runs, "alive")
    RunFolder.create(runs, "unbegun")
    with owned(alive.path):
        states = listed(capsys)
    assert {name: state["state"] for name, state in states.items()} == {
        "done": "finished",
        "stopped": "stopped",
        "failed": "failed",
        "refused": "failed",
        "gone": "dead",
        "alive": "running",
        "unbegun": "failed",
    }
    assert (states["stopped"]["step"], states["stopped"]["num_steps"]) == (2, 4)
    assert (states["done"]["held_out_before"], states["done"]["held_out_after"]) == (0.25, 0.75)
    assert states["stopped"]["held_out_after"] is None


def test_a_resumed_run_that_was_killed_is_not_what_it_was_before(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tracker = begin_run(place / "runs", "r")
    tracker.close(143)
    with folder.events_file.open("a") as events:
        events.write('{"event": "run", "time_s": 9.0, "resumed": true, "step": 0}\n')
    assert listed(capsys)["r"]["state"] == "failed"


def test_the_newest_run_is_listed_first_and_latest_is_no_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("b", "c", "a")):
        folder = finished_run(place / "runs", name)
        os.utime(folder.versions_file, (1000 + number, 1000 + number))
    folder.make_latest()
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "a", "c", "b"]
    assert "4/4" in lines[1]
    assert "0.250 → 0.750" in lines[1]


def test_no_runs_and_a_damaged_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--output-dir", "nowhere"]) == 0
    assert capsys.readouterr().out == "no runs in nowhere/\n"
    finished_run(place / "runs", "good")
    bad = finished_run(place / "runs", "bad")
    bad.metrics_file.write_text("no JSON\n")
    assert main(["list", "--json"]) == 0
    captured = capsys.readouterr()
    assert [state["name"] for state in json.loads(captured.out)] == ["good"]
    assert "bad is left out" in captured.err


def test_a_long_run_is_read_at_its_ends_only(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "long", num_steps=9000)
    with folder.metrics_file.open("a") as metrics:
        metrics.write('{"step": 1, "critic/score/mean": 0.0, "filler": "' + "x" * 600_000 + '"}\n')
    do_steps(tracker, 2, 3)
    tracker.close(143)
    found = status(capsys, "long")
    assert (found["step"], found["held_out_before"]) == (3, 0.25)
    assert found["reward"] == pytest.approx(0.6)


def test_the_status_of_a_run_that_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "alive", num_steps=10)
    do_steps(tracker, 1, 4)
    checkpoint = save_checkpoint(folder, 2)
    folder.make_latest()
    with owned(folder.path):
        found = status(capsys)
        assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert found["state"] == "running"
    assert found["time_left_s"] == pytest.approx(12.0)
    assert found["queue_length"] == 8
    assert found["slots"] == {"train": 2, "rollout": 1, "moving": 0, "dead": 0}
    assert found["last_decision"] == "cpu-b/1 to train after step 2 (queue is short)"
    assert found["checkpoint"] == str(checkpoint)
    assert found["resume_command"] is None
    for part in ("4/10, about 0:12 left", "2 train, 1 rollout", "8 prompt groups wait", f"process {os.getpid()}"):
        assert part in text, text
    assert "go on with" not in text


def test_the_status_of_a_run_that_failed_says_why_and_how_to_go_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tracker = begin_run(place / "runs", "my run")
    do_steps(tracker, 1, 2)
    with log_to(folder.log_file, Console(file=open(os.devnull, "w"))):
        logging.getLogger("rlserve.x").error("the first")
        logging.getLogger("rlserve.x").error("cpu-a/0 was lost: killed")
        logging.getLogger("rlserve.x").warning("goodbye")
    tracker.close(1)
    save_checkpoint(folder, 1)
    (folder.checkpoints / "step_000002").mkdir()  # not written to its end
    assert main(["status", "my run"]) == 0
    text = capsys.readouterr().out
    assert "last error     cpu-a/0 was lost: killed" in text
    assert "step_000001" in text
    assert f"go on with: rlserve launch --resume '{folder.path}'" in text


def test_what_ended_a_run_counts_more_than_its_log(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "r")
    folder.log_file.write_text("2026-01-01 00:00:00,000 ERROR   7 rlserve.x: something before\n")
    assert status(capsys, "r")["last_error"] == "something before"
    tracker.close(2, "the reward raised: KeyError")
    assert status(capsys, "r")["last_error"] == "the reward raised: KeyError"


def test_a_finished_run_has_no_command_to_go_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "done")
    do_steps(tracker, 1, 4)
    save_checkpoint(folder, 4)
    end_run(folder, tracker, num_steps=4)
    assert status(capsys, "done")["resume_command"] is None


def test_a_run_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nosuch"]) == 2
    assert "no run 'nosuch'" in capsys.readouterr().err


def test_ages_in_words() -> None:
    assert [age(seconds) for seconds in (-1, 40, 600, 7200, 400_000)] == ["0 s", "40 s", "10 min", "2 h", "5 days"]
