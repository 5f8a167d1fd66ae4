"""How the schedulers' own programs are called, and what becomes of their answers."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from fake_programs import FakePrograms
from plans import plan_of

from rlserve.errors import UserError
from rlserve.launch.schedulers.arrays import JobArray
from rlserve.launch.schedulers.base import JobState
from rlserve.launch.schedulers.kubernetes.scheduler import KubernetesScheduler
from rlserve.launch.schedulers.ray_token import TOKEN_FILE
from rlserve.launch.schedulers.skypilot.scheduler import SkyPilotScheduler
from rlserve.launch.schedulers.slurm.scheduler import CANCELLED_FILE, SlurmScheduler
from rlserve.tracking.job_record import JobRecord

RUNNING = "JobId=41 JobState=RUNNING Reason=None Restarts=0"
SKY_SETTINGS = ("launch.image=me/rlserve:1", "launch.skypilot.bucket=s3://runs")
POD_SETTINGS = ("launch.image=me/rlserve:1", "launch.kubernetes.claim=runs", "launch.kubernetes.namespace=rl")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return FakePrograms(folder, "sbatch", "scontrol", "scancel", "kubectl", "sky")


def test_a_job_of_slurm_is_submitted_with_a_token_that_only_the_user_reads(
    programs: FakePrograms, tmp_path: Path
) -> None:
    programs.answer("sbatch", "41;cluster\n")
    (tmp_path / CANCELLED_FILE).touch()  # by the job before
    job = SlurmScheduler().submit(plan_of(), tmp_path)
    assert job == JobRecord(scheduler="slurm", id="41", place=str(tmp_path))
    assert programs.take_calls() == [f"sbatch --parsable {tmp_path}/job.sbatch"]
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    first = (tmp_path / TOKEN_FILE).read_text()
    SlurmScheduler().submit(plan_of(), tmp_path)
    assert len(first) == 64
    assert (tmp_path / TOKEN_FILE).read_text() != first
    assert not (tmp_path / CANCELLED_FILE).exists()


def test_a_running_job_of_slurm_saves_before_it_ends_and_a_waiting_one_is_removed(
    programs: FakePrograms, tmp_path: Path
) -> None:
    job = JobRecord(scheduler="slurm", id="41", place=str(tmp_path))
    programs.answer("scontrol", RUNNING)
    SlurmScheduler().cancel(job)
    assert programs.take_calls()[-1] == "scancel --signal=USR1 41"
    assert (tmp_path / CANCELLED_FILE).exists(), "it would queue up again"
    programs.answer("scontrol", RUNNING.replace("RUNNING", "PENDING"))
    SlurmScheduler().cancel(job)
    assert programs.take_calls()[-1] == "scancel 41"


def test_the_tasks_of_an_array_are_submitted_at_once_and_cancelled_one_by_one(
    programs: FakePrograms, tmp_path: Path
) -> None:
    plans = {number: replace(plan_of(), folder=tmp_path / f"hello-{number}") for number in (2, 5)}
    for plan in plans.values():
        (plan.folder / "job").mkdir(parents=True)
    programs.answer("sbatch", "41\n")
    jobs = SlurmScheduler().submit_array(JobArray(name="hello", plans=plans), tmp_path)
    assert programs.take_calls() == [f"sbatch --parsable {tmp_path}/job.sbatch"]
    assert {number: (job.id, job.place) for number, job in jobs.items()} == {
        number: (f"41_{number}", f"{tmp_path}/hello-{number}/job") for number in (2, 5)
    }
    tokens = {(plan.folder / "job" / TOKEN_FILE).read_text() for plan in plans.values()}
    assert len(tokens) == 2, "the processes of one run must not know those of another"
    programs.answer("scontrol", "JobId=41 ArrayJobId=41 ArrayTaskId=5 JobState=RUNNING Reason=None Restarts=0")
    SlurmScheduler().cancel(jobs[5])
    assert programs.take_calls() == ["scontrol --oneliner show job 41_5", "scancel --signal=USR1 41_5"]
    assert [(plan.folder / "job" / CANCELLED_FILE).exists() for plan in plans.values()] == [False, True]


def test_a_job_that_slurm_has_forgotten_has_no_state(programs: FakePrograms, tmp_path: Path) -> None:
    job = JobRecord(scheduler="slurm", id="41", place=str(tmp_path))
    programs.fail("scontrol", "slurm_load_jobs error: Invalid job id specified\n")
    assert SlurmScheduler().state(job) is None
    programs.fail("scontrol", "slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        SlurmScheduler().state(job)


def test_files_for_kubernetes_are_checked_by_the_server_before_anything_is_changed(
    programs: FakePrograms, tmp_path: Path
) -> None:
    plan = plan_of(*POD_SETTINGS)
    job = KubernetesScheduler().submit(plan, tmp_path)
    assert job == JobRecord(scheduler="kubernetes", id="hello", place="rl")
    assert programs.take_calls() == [
        f"kubectl apply --filename {tmp_path} --dry-run=server",
        "kubectl --namespace rl delete rayjob hello --ignore-not-found",
        f"kubectl apply --filename {tmp_path}",
    ]
    programs.fail("kubectl", 'error: namespaces "rl" not found\n')
    with pytest.raises(UserError, match='namespaces "rl" not found'):
        KubernetesScheduler().submit(plan, tmp_path)
    assert len(programs.take_calls()) == 1


def test_a_job_of_kubernetes_is_asked_in_its_namespace(programs: FakePrograms) -> None:
    job = JobRecord(scheduler="kubernetes", id="hello", place="rl")
    assert KubernetesScheduler().state(job) is None
    programs.answer("kubectl", json.dumps({"status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}}))
    state = KubernetesScheduler().state(job)
    assert state is not None
    assert state.stage == "running"
    KubernetesScheduler().cancel(job)
    *asked, cancelled = programs.take_calls()
    assert asked == ["kubectl --namespace rl get rayjob hello --ignore-not-found --output=json"] * 2
    assert cancelled.startswith("kubectl --namespace rl delete rayjob,configmap,poddisruptionbudget,networkpolicy")
    assert "--selector=rlserve/run=hello" in cancelled


def test_a_job_of_skypilot_is_asked_by_the_number_that_it_was_given(
    programs: FakePrograms, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    programs.answer("sky", "Useful Commands\n\x1b[1mManaged Job ID: 12\x1b[0m\n")
    plan = plan_of(*SKY_SETTINGS, "launch.env_file=/home/me/.rlserve.env")
    job = SkyPilotScheduler().submit(plan, tmp_path)
    assert job == JobRecord(scheduler="skypilot", id="12", place="")
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    programs.answer("sky", json.dumps([{"job_id": 12, "task_id": 0, "status": "RUNNING"}]))
    assert SkyPilotScheduler().state(job) == JobState(stage="running", detail="RUNNING")
    assert SkyPilotScheduler().print_logs(job, follow=True) == 0
    SkyPilotScheduler().cancel(job)
    assert programs.take_calls() == [
        f"sky jobs launch --yes --detach-run --secret-file /home/me/.rlserve.env {tmp_path}/job.yaml",
        "sky jobs queue --all --output json",
        "sky jobs logs --follow --tail 0 12",
        "sky jobs cancel --yes --graceful 12",
    ]
    assert "RUNNING" in capfd.readouterr().out
    programs.answer("sky", "submitted\n")
    with pytest.raises(UserError, match="which job it has begun"):
        SkyPilotScheduler().submit(plan, tmp_path)


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on the PATH"):
        SlurmScheduler().submit(plan_of(), tmp_path)
