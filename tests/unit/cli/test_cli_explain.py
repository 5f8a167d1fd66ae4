"""``rlserve explain``: the story of a run that has ended, of one that goes on, and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import begin_run, do_steps, finished_run

from rlserve.cli import main
from rlserve.tracking.events import Decision, SlotEvent


def test_a_run_is_explained_also_while_it_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(place / "runs", "done")
    assert main(["explain", "done"]) == 0
    assert capsys.readouterr().out.startswith("done: policy ")
    _, tracker = begin_run(place / "runs", "going")
    do_steps(tracker, 1, 2)
    told = {"queue_length": 3, "num_train": 3, "num_rollout": 1}
    tracker.record(Decision(time_s=4.0, step=1, action="hold", slot_id=None, reason="the split is good", **told))
    tracker.record(Decision(time_s=7.0, step=2, action="to_rollout", slot_id="cpu/1", reason="it pays", **told))
    moving = {"owner": "moving", "state": "leaving_train"}
    tracker.record(SlotEvent(time_s=7.0, slot_id="cpu/1", gang_id="cpu/1", slot_type="cpu", **moving))
    assert main(["explain", "going"]) == 0
    text = capsys.readouterr().out
    for part in ("so far", "the split is good", "cpu/1 to rollout, after step 2", "why: it pays", "it is under way"):
        assert part in text
    assert main(["explain", "going", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["moves"][-1]["reason"] == "it pays"
    assert (found["judgement"]["against_start"], found["is_over"]) == (None, False)


def test_a_run_that_is_not_there_is_the_users_to_mend(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nowhere"]) == 2
    assert "no run 'nowhere'" in capsys.readouterr().err
