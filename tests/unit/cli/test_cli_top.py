"""``rlserve top``, ``rlserve trace``: what they print of runs in every state."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from small_runs import begin_run, do_steps, finished_run

from rlserve.cli import main
from rlserve.cli.top import moves_table
from rlserve.tracking.live import LiveGang, LiveShare, LiveState
from rlserve.tracking.owner import owned
from rlserve.tracking.run_view import MoveView

LIVE = LiveState(
    time_s=75.0,
    status="training",
    queue_length=3,
    num_in_flight=16,
    num_buffered=4,
    trainer_waiting=True,
    weight_version=2,
    tokens_per_s=1812.5,
    gangs=(
        LiveGang(id="cpu-a/0", type="cpu-a", num_slots=1, state="train", worker_state="suspect", version=2),
        LiveGang(
            id="cpu-b/0",
            type="cpu-b",
            num_slots=1,
            state="rollout",
            version=1,
            num_running=30,
            num_waiting=2,
            kv_cache_usage=0.5,
            tokens_per_s=1812.5,
        ),
        LiveGang(id="cpu-b/1", type="cpu-b", num_slots=1, state="joining_rollout"),
    ),
)


def test_where_clients_of_a_run_find_its_server(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "alive", num_steps=10)
    do_steps(tracker, 1, 4)
    folder.server_file.write_text(json.dumps({"address": "http://127.0.0.1:40123", "model": "policy"}))
    with owned(folder.path):
        assert main(["top", "alive", "--once"]) == 0
        assert "clients: http://127.0.0.1:40123" in " ".join(capsys.readouterr().out.split())
        assert main(["status", "alive"]) == 0
        assert "clients http://127.0.0.1:40123" in " ".join(capsys.readouterr().out.split())
    assert main(["top", "alive", "--once"]) == 0
    assert "127.0.0.1" not in capsys.readouterr().out, "the run is dead, and so is its server"


def test_how_a_cluster_is_divided_that_others_share(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "alive", num_steps=10)
    do_steps(tracker, 1, 4)
    share = LiveShare(num_lent=2, num_borrowed=0, runs={"urgent": 2, "small": 1})
    tracker.show(replace(LIVE, share=share))
    with owned(folder.path):
        assert main(["top", "alive", "--once"]) == 0
    assert "slots lent 2 borrowed 0 others have urgent 2, small 1" in " ".join(capsys.readouterr().out.split())


def test_a_frame_of_a_run_that_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "alive", num_steps=10)
    do_steps(tracker, 1, 4)
    tracker.show(LIVE)
    with owned(folder.path):
        assert main(["top", "alive", "--once"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    text = [" ".join(words) for words in lines]
    assert text[0] == "alive running step 4/10 1:15 gone about 0:12 left"
    assert text[1] == "queue 3 in flight 16 trainer waits 25% (now) buffer 4"
    assert text[2].startswith("generated 1,812 tokens/s trained - tokens/s reward 0.800")
    assert "cpu-a/0 train, suspect v2 - - - -" in text
    assert "cpu-b/0 rollout v1 30 2 50% 1,812" in text
    assert "cpu-b/1 joining rollout - - - - -" in text
    assert "last decision hold: rests" in text
    assert "0:04 cpu-b/1 to train - - - queue is short" in text


def test_gangs_that_moved_together_leave_the_numbers_their_room() -> None:
    move = MoveView(
        time_s=767.0,
        text="H100/1, H100/2, H100/3, H100/4 to rollout",
        reason="training waits",
        predicted=0.123,
        realised=0.045,
        realised_error=0.01,
        duration_s=37.7,
    )
    console = Console(width=60, file=io.StringIO(), record=True)
    console.print(moves_table([move]))
    words = console.export_text().split()
    assert {"12:47", "+12.3%", "+4.5%", "37.7", "H100/4"} <= set(words)


def test_a_run_that_has_ended_has_no_live_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(place / "runs", "done")
    assert main(["top", "done"]) == 0, "without a terminal, one frame"
    text = capsys.readouterr().out
    assert "done  finished  step 4/4" in text
    assert "KV cache" not in text


def test_a_trace_is_written_where_it_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished_run(place / "runs", "done")
    assert main(["trace", "done"]) == 0
    assert capsys.readouterr().out == f"{folder.trace_file}\n"
    assert json.loads(folder.trace_file.read_text())["otherData"] == {"run": "done"}
    assert main(["trace", "done", "--out", "no/such/folder.json"]) == 2
    assert "choose another --out" in capsys.readouterr().err
