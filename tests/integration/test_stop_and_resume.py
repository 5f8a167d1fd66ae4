"""Runs that are stopped, killed and taken up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import Run, Workplace, saved_state
from safetensors.torch import load_file

from rlserve.controller.checkpoint import is_whole

pytestmark = pytest.mark.slow

EVERY_STEP = {"num_steps": 5, "checkpoint": {"every_steps": 1, "keep": 3}}


def checkpoints(run: Run) -> list[Path]:
    return sorted(run.folder.glob("checkpoints/step_*"))


def assert_whole(run: Run, num_steps: int) -> dict[str, Any]:
    """All steps stand once in the files, with every group trained once."""
    assert run.wait() == 0, run.output
    summary: dict[str, Any] = json.loads((run.folder / "summary.json").read_text())
    lines = run.lines("samples.jsonl")
    trained = [group_id for line in lines for group_id in line["group_ids"]]
    assert [line["step"] for line in lines] == list(range(1, num_steps + 1))
    steps = [line["step"] for line in run.lines("metrics.jsonl") if "actor/pg_loss" in line]
    assert steps == list(range(1, num_steps + 1))
    assert len(trained) == len(set(trained)) == num_steps * 4
    assert summary["groups_trained"] == summary["groups_admitted"] == num_steps * 4
    assert summary["num_steps"] == summary["final_weight_version"] == num_steps
    return summary


def test_ctrl_c_and_resume(workplace: Workplace) -> None:
    """SIGINT to the whole process group; a checkpoint; a resume that is stopped at once; then --resume latest goes on
    to more steps than were planned."""
    run = workplace.start("interrupted", {"num_steps": 8})
    run.wait_until(lambda: run.num_steps() >= 1, "a step")
    workplace.hold()
    second = workplace.resume("interrupted")
    assert second.wait() == 2
    assert f"is in use: process {run.process.pid} on {socket.gethostname()} writes to it" in second.output
    run.interrupt()
    assert run.wait() == 130, run.output
    workplace.release()
    assert "Traceback" not in run.output + second.output
    assert not (run.folder / "owner.json").exists()
    (checkpoint,) = checkpoints(run)
    assert is_whole(checkpoint)
    num_steps = run.num_steps()
    assert checkpoint.name == f"step_{num_steps:06d}"
    run.wait_for_no_processes()
    assert_holds_what_was_saved(workplace, checkpoint)

    again = workplace.resume("interrupted", "num_steps=10", run="latest")
    assert_whole(again, 10)
    resumes = [(False, 0), (True, num_steps), (True, num_steps)]
    assert [(event["resumed"], event["step"]) for event in again.events("run")] == resumes
    # A replica's records are about the time up to when it was last heard.
    times_s = [event["time_s"] for event in again.lines("events.jsonl") if event["event"] != "replica"]
    assert times_s == sorted(times_s), "records do not go back in time"
    answered = [answer["step"] for answer in again.lines("answers.jsonl") if answer["kind"] == "training"]
    assert answered == [step for step in range(1, 11) for _ in range(4 * 2)]
    first = [event["version"] for event in again.events("weights") if event["slot_id"] == "cpu-b/0"]
    assert first.count(num_steps) == 3, "the weights of the checkpoint are delivered once more after each resume"
    assert int(saved_state(checkpoints(again)[-1])["counters"][0]) == 10


def assert_holds_what_was_saved(workplace: Workplace, checkpoint: Path) -> None:
    """To the bit: resumed and stopped before its first step, a run saves what it loaded."""
    kept = workplace.place / "kept"
    shutil.copytree(checkpoint, kept)
    run = workplace.resume("interrupted")
    run.wait_until(lambda: "starting Ray" in run.output, "the reward was tried")
    workplace.hold()
    run.wait_until(lambda: run.output.rstrip().endswith("training"), "the loops")
    shutil.rmtree(checkpoint)
    run.interrupt()
    assert run.wait() == 130, run.output
    workplace.release()
    assert checkpoints(run) == [checkpoint]
    assert f"step_{int(saved_state(kept)['counters'][0]):06d}" == checkpoint.name
    policies = (load_file(folder / "policy/model.safetensors") for folder in (kept, checkpoint))
    for saved, resaved in (policies, (saved_state(kept), saved_state(checkpoint))):
        assert saved.keys() == resaved.keys()
        assert all(resaved[key].equal(tensor) for key, tensor in saved.items())


def test_stopped_while_workers_start(workplace: Workplace) -> None:
    """Nothing is new, so nothing is saved; the end comes at once."""
    run = workplace.start("early")
    run.wait_until(lambda: "starting workers" in run.output, "the start of the workers")
    run.interrupt()
    assert run.wait() == 130, run.output
    assert "Traceback" not in run.output
    assert checkpoints(run) == []
    run.wait_for_no_processes()


def test_a_last_checkpoint_that_cannot_be_written(workplace: Workplace) -> None:
    """All steps are trained: the run is scored, summed up and reported all the same, and says what failed."""
    run = workplace.start("unsaved", {"tracking": {"report": True}})
    workplace.hold()
    run.wait_until(lambda: (run.folder / "checkpoints").is_dir(), "the run folder")
    (run.folder / "checkpoints").rmdir()
    (run.folder / "checkpoints").touch()
    workplace.release()
    assert run.wait() == 1, run.output
    assert "cannot be written: Not a directory" in run.output
    assert "Traceback" not in run.output
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["num_steps"] == 3
    assert summary["held_out_after"] is not None
    assert (run.folder / "report.html").exists()
    run.wait_for_no_processes()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_in_the_first_seconds(workplace: Workplace, number: signal.Signals) -> None:
    """Before anything is loaded: one line, nothing left behind."""
    run = workplace.start("first", environment={"TMPDIR": str(workplace.place)})
    run.wait_until(lambda: "loading" in run.output, "the first line")
    run.process.send_signal(number)
    assert run.wait() == 128 + number, run.output
    assert f"stopped by {number.name} before training" in run.output
    assert "Traceback" not in run.output
    run.wait_for_no_processes()
    assert not list(workplace.place.glob("rlserve-*"))


def test_driver_killed_and_newest_checkpoint_damaged(workplace: Workplace) -> None:
    """SIGKILL of the driver; the newest checkpoint loses a byte; the run goes on from the one before it, and what came
    after that one is done again."""
    run = workplace.start("killed", EVERY_STEP)
    run.wait_until(lambda: len(checkpoints(run)) >= 3, "three checkpoints")
    ray_folder = run.ray_folder()
    workplace.hold()
    run.process.kill()
    run.process.wait()
    workplace.release()
    run.wait_for_no_processes()
    assert not ray_folder.exists()
    good, damaged = checkpoints(run)[-2:]
    state = min((damaged / "trainer").glob("*.safetensors"))
    state.write_bytes(state.read_bytes()[:-1] + b"\x00\x01")
    again = workplace.resume("killed")
    assert_whole(again, 5)
    assert f"{damaged} is damaged" in again.output
    replayed = [event["version"] for event in again.events("weights") if event["slot_id"] == "cpu-b/0"]
    assert replayed.count(int(good.name.removeprefix("step_"))) >= 2


def test_a_second_ctrl_c_ends_at_once(workplace: Workplace) -> None:
    """The first lets the step under way finish, which a trainer that stands still never does."""
    run = workplace.start("twice", {"num_steps": 1000, "pool": {"health_timeout_s": 100.0}})
    run.wait_until(lambda: run.num_steps() >= 1, "a step")
    trainer = psutil.Process(run.worker("cpu-a/0"))
    os.kill(trainer.pid, signal.SIGSTOP)
    run.interrupt()
    run.wait_until(lambda: "again to end at once" in run.output, "the first stop")
    run.interrupt()
    assert run.wait() == 130, run.output
    run.wait_for_no_processes()
