"""``rlserve submit`` and what is done with a run that was submitted, by a scheduler that records what it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from small_runs import begin_run, do_steps

from rlserve.cli import main
from rlserve.cli.cancel import wait_for_end
from rlserve.cli.submit import SCHEDULER_NAMES
from rlserve.errors import UserError
from rlserve.launch.schedulers import factory
from rlserve.launch.schedulers.base import JobState, Scheduler
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.tracking.job_record import JobRecord, read_job
from rlserve.tracking.owner import OWNER_FILE, claim, this_process
from rlserve.tracking.run_folder import RunFolder


class FakeScheduler(Scheduler):
    """Numbers its jobs; what is asked of them is kept for all of its kind."""

    name = "slurm"
    asked: list[str]
    states: dict[str, JobState]
    refuses: bool

    def render(self, plan: JobPlan) -> Mapping[str, str]:
        return {"job.sh": f"launch {plan.name}\n"}

    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        return ("queue", str(folder))

    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        if self.refuses:
            raise UserError("queue: no such partition")
        assert (folder / "job.sh").read_text() == f"launch {plan.name}\n"
        job = JobRecord(scheduler=self.name, id=str(len(self.asked) + 1), place="here")
        self.asked.append(f"submit {plan.name}")
        return job

    def state(self, job: JobRecord) -> JobState | None:
        return self.states.get(job.id)

    def print_logs(self, job: JobRecord, *, follow: bool) -> int:
        self.asked.append(f"logs {job.id} {follow}")
        return 0

    def cancel(self, job: JobRecord) -> None:
        self.asked.append(f"cancel {job.id}")


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> type[FakeScheduler]:
    FakeScheduler.asked, FakeScheduler.states, FakeScheduler.refuses = [], {}, False
    monkeypatch.setattr(factory, "SCHEDULERS", (FakeScheduler,))
    return FakeScheduler


def submit(*more: str) -> int:
    return main(["submit", "conf/rlhf.yaml", "--to", "slurm", "name=mine", "pool=two", *more])


def test_every_scheduler_can_be_named() -> None:
    assert {scheduler.name for scheduler in factory.SCHEDULERS} == set(SCHEDULER_NAMES)


def test_a_template_of_the_users_is_taken_in_place_of_ours(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine").mkdir()
    template = place / "mine" / "job.sbatch.j2"
    template.write_text(
        "#!/bin/bash\n# {{ plan.job_name }}\n{% for group in plan.groups %}{{ group.name }} {% endfor %}\n"
    )
    assert submit("--dry-run", "launch.templates=mine") == 0
    assert "job.sbatch\n#!/bin/bash\n# mine\ncpu-a-0 cpu-b-1\n" in capsys.readouterr().out
    template.write_text("{{ plan.partition }}\n")
    assert submit("--dry-run", "launch.templates=mine") == 2
    assert f"job.sbatch.j2 (launch.templates={place}/mine): " in capsys.readouterr().err


def test_a_dry_run_prints_the_files_and_makes_nothing(
    place: Path, scheduler: type[FakeScheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("--dry-run") == 0
    folder = place / "runs" / "mine" / "job"
    assert capsys.readouterr().out == f"# ---- {folder}/job.sh\nlaunch mine\n\n# would run: queue {folder}\n"
    assert scheduler.asked == []
    assert not (place / "runs").exists()


def test_a_submitted_run_is_asked_and_ended_by_its_scheduler(
    place: Path, scheduler: type[FakeScheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit() == 0
    folder = RunFolder.open(place / "runs" / "mine")
    assert read_job(folder.job_file) == JobRecord(scheduler="slurm", id="1", place="here")
    assert folder.read_config()["launch"]["kind"] == "cluster"
    scheduler.states["1"] = JobState(stage="waiting", detail="PENDING (Priority)")
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["job"]) == ("waiting", "slurm 1: PENDING (Priority)")
    assert main(["logs", "mine", "--follow"]) == main(["cancel", "mine"]) == 0
    assert main(["resume", "mine"]) == 2
    assert "has a job already, slurm 1: PENDING (Priority)" in capsys.readouterr().err
    del scheduler.states["1"]
    assert main(["resume", "mine", "num_steps=7"]) == 0
    assert scheduler.asked == ["submit mine", "logs 1 True", "cancel 1", "submit mine"]
    assert folder.read_config()["num_steps"] == 7
    assert read_job(folder.job_file) == JobRecord(scheduler="slurm", id="4", place="here")


def test_a_run_whose_cluster_is_gone_goes_on_elsewhere_if_asked(
    place: Path, scheduler: type[FakeScheduler], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: FakeScheduler, job: JobRecord) -> None:
        raise UserError("nobody answers")

    assert submit() == 0
    monkeypatch.setattr(scheduler, "state", unreachable)
    assert main(["resume", "mine"]) == 2
    assert "nobody answers" in capsys.readouterr().err
    monkeypatch.setattr(scheduler, "is_elsewhere", lambda self, plan, job: plan.launch.wait_s == 7.0)
    assert main(["resume", "mine", "launch.wait_s=6"]) == 2
    assert main(["resume", "mine", "launch.wait_s=7"]) == 0
    assert scheduler.asked == ["submit mine", "submit mine"]


def test_a_scheduler_that_refuses_leaves_the_name_free(
    place: Path, scheduler: type[FakeScheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler.refuses = True
    assert submit() == 2
    assert capsys.readouterr().err.endswith("queue: no such partition\n")
    assert not (place / "runs" / "mine").exists()
    scheduler.refuses = False
    assert submit() == 0


def test_the_log_of_any_run(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, _ = begin_run(place / "runs", "plain")
    assert main(["logs", "plain"]) == 2
    assert "plain has no log yet" in capfd.readouterr().err
    folder.log_file.write_text("one\ntwo\n")
    assert main(["logs", "plain"]) == 0
    assert capfd.readouterr().out == "one\ntwo\n"
    assert main(["logs", "plain", "--job"]) == 2
    assert "was not submitted" in capfd.readouterr().err


def test_a_run_of_this_machine_is_told_to_save(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tracker = begin_run(place / "runs", "plain")
    do_steps(tracker, 1, 2)
    assert main(["cancel", "plain"]) == 2
    assert capsys.readouterr().err == "plain is not running\n"
    program = (
        "import signal, sys\nfrom pathlib import Path\nfrom rlserve.tracking.owner import owned\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "with owned(Path(sys.argv[1])):\n    print('begun', flush=True)\n    signal.sigwait({signal.SIGTERM})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert main(["cancel", "plain", "--wait", "60"]) == 0
    assert process.returncode == 0
    assert f"plain: process {process.pid} on" in capsys.readouterr().out


def test_a_run_of_another_machine_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = begin_run(place / "runs", "far")
    (folder.path / OWNER_FILE).write_text(json.dumps(asdict(replace(this_process(), host="node-7", system="other"))))
    assert main(["cancel", "far"]) == 2
    assert "node-7: cancel it there" in capsys.readouterr().err


def test_the_wait_for_an_end_ends_itself(place: Path) -> None:
    folder, _ = begin_run(place / "runs", "long")
    claim(folder.path, this_process())
    times = iter(range(100))
    assert not wait_for_end(folder, 5.0, now=lambda: float(next(times)), wait=lambda: None)
    os.unlink(folder.path / OWNER_FILE)
    assert wait_for_end(folder, 5.0, now=lambda: 0.0, wait=lambda: None)
