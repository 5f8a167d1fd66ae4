"""A sweep as jobs, and what is done with all of its runs or with one: by schedulers that record what they are asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import begin_run, do_steps, end_run

from rlserve.cli import main
from rlserve.errors import UserError
from rlserve.launch.schedulers import factory
from rlserve.launch.schedulers.arrays import ArrayScheduler, JobArray
from rlserve.launch.schedulers.base import JobState, Scheduler
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.tracking.job_record import JobRecord, read_job
from rlserve.tracking.run_folder import RunFolder

RUNS = JobState(stage="running", detail="RUNNING")


class Recorder:
    """What both kinds of scheduler keep for all of their kind."""

    asked: list[str]
    states: dict[str, JobState]
    refuses: bool
    reason: str | None


class FakeJobs(Recorder, Scheduler):
    """Has no arrays."""

    name = "ray"

    def render(self, plan: JobPlan) -> Mapping[str, str]:
        return {"job.sh": f"launch {plan.name} of {plan.sweep}\n", "run.yaml": plan.run_file}

    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        return ("queue", str(folder))

    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        if self.refuses and plan.name.endswith("2"):
            raise UserError("queue: it is full")
        self.asked.append(f"submit {plan.name}")
        return JobRecord(scheduler=self.name, id=f"job-{plan.name}", place="here")

    def state(self, job: JobRecord) -> JobState | None:
        return self.states.get(job.id)

    def print_logs(self, job: JobRecord, *, follow: bool) -> int:
        self.asked.append(f"logs {job.id} {follow}")
        return 0

    def cancel(self, job: JobRecord) -> None:
        self.asked.append(f"cancel {job.id}")


class FakeArrays(FakeJobs, ArrayScheduler):
    """Has arrays, and takes one unless it has a reason not to."""

    name = "slurm"

    def why_apart(self, array: JobArray) -> str | None:
        return self.reason

    def render_array(self, array: JobArray) -> Mapping[str, str]:
        return {"array.sh": f"tasks {array.tasks}\n"}

    def render_task(self, plan: JobPlan) -> Mapping[str, str]:
        return {"run.yaml": plan.run_file}

    def submit_array_command(self, folder: Path) -> Sequence[str]:
        return ("queue", str(folder))

    def submit_array(self, array: JobArray, folder: Path) -> Mapping[int, JobRecord]:
        if self.refuses:
            raise UserError("queue: no such partition")
        assert all((plan.folder / "job" / "run.yaml").is_file() for plan in array.plans.values())
        self.asked.append((folder / "array.sh").read_text().strip())
        return {number: JobRecord(scheduler=self.name, id=f"7_{number}", place="here") for number in array.plans}


@pytest.fixture(autouse=True)
def scheduler(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.asked, Recorder.states, Recorder.refuses, Recorder.reason = [], {}, False, None
    monkeypatch.setattr(factory, "SCHEDULERS", (FakeJobs, FakeArrays))
    return Recorder


def sweep(to: str = "slurm", *more: str) -> int:
    return main(["sweep", "conf/rlhf.yaml", "seed=1,2,3", "name=all", "pool=two", "--to", to, *more])


def status(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["status", "all", "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


def test_a_dry_run_prints_one_job_for_all(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("slurm", "--dry-run") == 0
    folder = place / "runs" / "all"
    assert capsys.readouterr().out.splitlines() == [
        *(f"all-{number}  seed={number} pool=two" for number in (1, 2, 3)),
        f"# ---- {folder}/array.sh",
        "tasks 1-3",
        "",
        f"# would run: queue {folder}",
    ]
    assert not (place / "runs").exists()


def test_a_dry_run_prints_the_job_of_each_where_there_are_no_arrays(
    place: Path, scheduler: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("ray", "--dry-run") == 0
    printed = capsys.readouterr()
    for number in (1, 2, 3):
        assert f"# ---- {place}/runs/all-{number}/job/job.sh\nlaunch all-{number} of all\n" in printed.out
        assert f"# would run: queue {place}/runs/all-{number}/job\n" in printed.out
    assert "run.yaml" not in printed.out
    assert printed.err == ""
    scheduler.reason = "they differ"
    assert sweep("slurm", "--dry-run") == 0
    printed = capsys.readouterr()
    assert "launch all-3 of all" in printed.out
    assert printed.err == "each run is a job of its own: they differ\n"


def test_one_run_of_an_array_is_asked_cancelled_and_resumed_like_any_other(
    place: Path, scheduler: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep() == 0
    assert scheduler.asked == ["tasks 1-3"]
    folder = RunFolder.open(place / "runs" / "all-2")
    assert folder.read_config()["seed"] == 2
    assert read_job(folder.job_file) == JobRecord(scheduler="slurm", id="7_2", place="here", sweep="all")
    scheduler.states["7_2"] = RUNS
    assert main(["logs", "all-2"]) == main(["cancel", "all-2"]) == 0
    del scheduler.states["7_2"]
    assert main(["resume", "all-2", "num_steps=7"]) == 0
    assert scheduler.asked[1:] == ["logs 7_2 False", "cancel 7_2", "submit all-2"]
    assert (folder.job / "job.sh").read_text() == "launch all-2 of all\n"
    assert read_job(folder.job_file) == JobRecord(scheduler="slurm", id="job-all-2", place="here", sweep="all")


def test_all_runs_are_asked_cancelled_and_resumed_at_once(
    place: Path, scheduler: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep() == 0
    scheduler.states = {"7_1": RUNS, "7_2": JobState(stage="waiting", detail="PENDING")}
    found = status(capsys)
    assert [(each["name"], each["state"], each["job"]) for each in found] == [
        ("all-1", "waiting", "slurm 7_1: RUNNING"),
        ("all-2", "waiting", "slurm 7_2: PENDING"),
        ("all-3", "waiting", "slurm 7_3: ended, and forgotten"),
    ]
    assert found[0]["overrides"] == ["seed=1", "pool=two", "name=all-1"]
    assert main(["status", "all"]) == 0
    assert "seed=2 pool=two" in capsys.readouterr().out
    assert main(["cancel", "all"]) == 0
    assert scheduler.asked[1:] == ["cancel 7_2", "cancel 7_1"], "the last first; one that has ended is left alone"
    scheduler.states = {"7_1": RUNS}
    assert main(["resume", "all", "num_steps=7"]) == 0
    assert scheduler.asked[-1] == "tasks 2-3", "one that still runs is left alone"
    assert [RunFolder(place / "runs" / f"all-{number}").read_config()["num_steps"] == 7 for number in (1, 2, 3)] == [
        False,
        True,
        True,
    ]
    scheduler.states = dict.fromkeys(["7_1", "7_2", "7_3"], RUNS)
    assert main(["resume", "all"]) == 2
    assert "no run of all is left to resume" in capsys.readouterr().err


def test_all_runs_that_are_jobs_of_their_own_are_resumed_as_such(
    place: Path, scheduler: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("ray") == 0
    scheduler.states["job-all-2"] = RUNS
    assert main(["resume", "all"]) == 0
    assert scheduler.asked == ["submit all-1", "submit all-2", "submit all-3", "submit all-1", "submit all-3"]
    scheduler.states.clear()
    assert main(["cancel", "all"]) == 2
    assert "no run of all waits or is running" in capsys.readouterr().err


def test_a_scheduler_that_refuses_an_array_leaves_all_names_free(
    place: Path, scheduler: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler.refuses = True
    assert sweep() == 2
    assert capsys.readouterr().err.endswith("queue: no such partition\n")
    assert list((place / "runs").iterdir()) == []
    scheduler.refuses = False
    assert sweep() == 0
    assert sweep() == 2
    assert "runs/all exists already" in capsys.readouterr().err


def test_what_was_submitted_before_a_refusal_stays(place: Path, scheduler: type[Recorder]) -> None:
    scheduler.refuses = True
    assert sweep("ray") == 2
    assert scheduler.asked == ["submit all-1"]
    names = sorted(path.name for path in (place / "runs").iterdir() if not path.is_symlink())
    assert names == ["all", "all-1"]


def test_the_logs_of_all_runs_stand_one_below_the_other(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep() == 0
    assert main(["logs", "all"]) == 2
    for number in (1, 3):
        RunFolder(place / "runs" / f"all-{number}").log_file.write_text(f"of {number}\n")
    capfd.readouterr()
    assert main(["logs", "all"]) == 0
    printed = capfd.readouterr().out
    assert printed.index("all-1/rlserve.log") < printed.index("of 1") < printed.index("of 3")
    assert main(["logs", "all", "--job"]) == 2
    assert "say of which of its runs, for instance all-1" in capfd.readouterr().err


def test_a_sweep_of_this_machine_is_resumed_where_it_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[list[str]] = []

    def launch(command: list[str], **more: Any) -> Any:
        if command[1:3] != ["-m", "rlserve"]:
            return real_run(command, **more)
        launched.append(command[3:])
        return subprocess.CompletedProcess(command, 143 if len(launched) == 2 else 0)

    real_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", launch)
    assert main(["sweep", "conf/rlhf.yaml", "seed=1,2,3", "name=all"]) == 143
    assert [words[-1] for words in launched] == ["name=all-1", "name=all-2"]
    for name in ("all-1", "all-2"):
        folder, tracker = begin_run(place / "runs", name, num_steps=2)
        do_steps(tracker, 1, 2)
        end_run(folder, tracker, num_steps=2, exit_code=0 if name == "all-1" else 143)
    assert [each.get("state") for each in status(capsys)] == ["finished", "stopped", None]
    assert main(["status", "all"]) == 0
    assert "not begun" in capsys.readouterr().out
    launched[:] = [[], []]
    assert main(["resume", "all", "num_steps=7"]) == 0
    assert [words[2:] for words in launched[2:]] == [
        [f"seed={number}", f"name=all-{number}", f"output_dir={place}/runs", "num_steps=7", "--continue"]
        for number in (2, 3)
    ]
