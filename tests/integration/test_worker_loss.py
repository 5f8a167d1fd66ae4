"""Workers that die or stop answering, where it matters who: the run goes on, loses nothing and trains nothing twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from runs import Run, Workplace

pytestmark = pytest.mark.slow

NUM_STEPS = 6
TWO_AND_ONE = [
    {"type": "cpu-a", "count": 2, "prefer": "train"},
    {"type": "cpu-b", "count": 1, "prefer": "rollout"},
]
# Answers long enough for a worker to be in the middle of one whenever it is hit.
LONG: Mapping[str, Any] = {"num_steps": NUM_STEPS, "rollout": {"max_tokens": 128}}


def hit(run: Run, slot_id: str, signal_number: int = signal.SIGKILL) -> None:
    """Send a signal to the worker of a slot."""
    os.kill(run.worker(slot_id), signal_number)


def assert_whole(run: Run, *, num_failures: int, num_restarts: int) -> None:
    """The run came to its end with all its counts."""
    assert run.wait() == 0, run.output
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["num_steps"] == summary["final_weight_version"] == NUM_STEPS
    assert summary["groups_trained"] == NUM_STEPS * 4
    assert summary["groups_admitted"] == summary["groups_trained"] + sum(summary["groups_dropped"].values())
    assert (summary["worker_failures"], summary["engine_restarts"]) == (num_failures, num_restarts)
    trained = [group_id for line in run.lines("samples.jsonl") for group_id in line["group_ids"]]
    assert len(trained) == len(set(trained)) == NUM_STEPS * 4
    run.wait_for_no_processes()


def test_the_only_rollout_worker_and_trainer_ranks_killed_and_stopped(workplace: Workplace) -> None:
    """The one that generates comes back. Then rank 0 of the trainers dies, so the other takes its place; and that one
    stops answering when the first is back."""
    changes = {**LONG, "pool": {"slots": TWO_AND_ONE, "health_timeout_s": 4.0}, "algorithm": {"num_epochs": 8}}
    run = workplace.start("lossy", changes)
    run.wait_until(lambda: run.num_steps() >= 1, "the first step")
    hit(run, "cpu-b/0", signal.SIGSEGV)
    run.wait_until(lambda: len(run.events("failure")) == 1, "the loss of cpu-b/0")
    run.wait_until(lambda: run.owners()["cpu-b/0"] == "rollout", "the return of cpu-b/0")
    assert "Fatal Python error: Segmentation fault" in (run.folder / "logs" / "cpu-b-0.log").read_text()
    hit(run, "cpu-a/0")
    run.wait_until(lambda: len(run.events("failure")) == 2, "the loss of cpu-a/0")
    workplace.hold()
    run.wait_until(lambda: run.owners()["cpu-a/0"] == "train", "the return of cpu-a/0")
    hit(run, "cpu-a/1", signal.SIGSTOP)
    workplace.release()
    run.wait_until(lambda: len(run.events("failure")) == 3, "the loss of cpu-a/1")
    assert_whole(run, num_failures=3, num_restarts=1)
    assert len([event for event in run.events("worker") if event["slot_id"] == "cpu-b/0"]) == 2


def test_the_only_trainer_killed_ends_the_run(workplace: Workplace) -> None:
    run = workplace.start("trainer", LONG)
    run.wait_until(lambda: run.num_steps() >= 1, "the first step")
    hit(run, "cpu-a/0")
    assert run.wait() == 1
    assert "no trainer is left that holds the state (cpu-a/0 lost" in run.output
    assert "--resume" in run.output
    assert "Traceback" not in run.output
    run.wait_for_no_processes()
