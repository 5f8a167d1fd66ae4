"""What a run becomes for a Ray cluster that is there already."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from plans import plan_of
from ray.runtime_env import RuntimeEnv

from rlserve.errors import UserError
from rlserve.launch.schedulers.ray_jobs.scheduler import RayScheduler
from rlserve.tracking.job_record import JobRecord


def test_the_job_is_a_line_of_shell_and_what_ray_is_told_of_it() -> None:
    files = RayScheduler().render(plan_of("pool=auto", "launch.env_file=/home/me/it's.env"))
    assert sorted(files) == ["entrypoint.sh", "run.yaml", "runtime_env.yaml"]
    assert files["entrypoint.sh"] == (
        "set -a && . '/home/me/it'\"'\"'s.env' && set +a && "
        "cd /data/runs/hello/job && exec python3 -m rlserve launch run.yaml --continue\n"
    )
    checked = subprocess.run(["sh", "-n"], input=files["entrypoint.sh"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_ray_can_read_what_it_is_told() -> None:
    files = RayScheduler().render(plan_of("pool=auto", "launch.ray.stop_wait_s=90"))
    content = yaml.safe_load(files["runtime_env.yaml"])
    assert content == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}, "no working_dir, which Ray would keep a copy of"
    assert RuntimeEnv(**content).env_vars() == content["env_vars"]
    assert files["entrypoint.sh"] == "cd /data/runs/hello/job && exec python3 -m rlserve launch run.yaml --continue\n"


@pytest.mark.parametrize(
    ("settings", "to"),
    [((), []), (("launch.ray.address=http://HEAD:8265",), ["--address", "http://HEAD:8265"])],
    ids=["of the environment", "named"],
)
def test_a_dry_run_says_which_cluster_would_be_asked(settings: tuple[str, ...], to: list[str]) -> None:
    command = RayScheduler().submit_command(plan_of("pool=auto", *settings), Path("/data/runs/hello/job"))
    assert list(command) == [
        *("ray", "job", "submit", *to),
        *("--runtime-env", "/data/runs/hello/job/runtime_env.yaml", "--no-wait"),
        *("--", "sh", "/data/runs/hello/job/entrypoint.sh"),
    ]


class FakeClient:
    """A job server that is asked, and answers in turn."""

    def __init__(self, *answers: str | RuntimeError) -> None:
        self.answers = list(answers)
        self.entrypoints: list[str] = []

    def __call__(self, address: str) -> FakeClient:
        return self

    def submit_job(self, *, entrypoint: str, runtime_env: object, metadata: object) -> str:
        self.entrypoints.append(entrypoint)
        answer = self.answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer


def submitted(client: FakeClient, monkeypatch: pytest.MonkeyPatch, folder: Path) -> JobRecord:
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", client)
    monkeypatch.setattr("rlserve.launch.schedulers.ray_jobs.scheduler._AGENT_INTERVAL_S", 0.0)
    plan = plan_of("pool=auto", "launch.ray.address=http://127.0.0.1:1")
    (folder / "runtime_env.yaml").write_text(RayScheduler().render(plan)["runtime_env.yaml"])
    return RayScheduler().submit(plan, folder)


def test_a_job_is_handed_in_again_while_the_head_has_nobody_yet_to_start_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nobody = RuntimeError(
        "Request failed with status code 500: No available agent to submit job, please try again later."
    )
    client = FakeClient(nobody, nobody, "job-1")
    assert submitted(client, monkeypatch, tmp_path).id == "job-1"
    assert client.entrypoints == [f"exec sh {tmp_path}/entrypoint.sh"] * 3


def test_what_is_wrong_with_a_job_itself_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = FakeClient(RuntimeError("status code 400"), "job-1")
    with pytest.raises(UserError, match="status code 400"):
        submitted(client, monkeypatch, tmp_path)
    assert client.answers == ["job-1"]


def test_a_run_goes_on_at_another_address_though_its_old_cluster_is_gone() -> None:
    job = JobRecord(scheduler="ray", id="a", place="http://127.0.0.1:1")
    elsewhere = ("pool=auto", "launch.ray.address=http://127.0.0.1:2")
    assert RayScheduler().is_elsewhere(plan_of(*elsewhere), job)
    assert not RayScheduler().is_elsewhere(plan_of("pool=auto", f"launch.ray.address={job.place}"), job)
    assert not RayScheduler().is_elsewhere(plan_of("pool=auto"), job)


def test_a_job_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"launch\.ray\.address, or RAY_API_SERVER_ADDRESS"):
        RayScheduler().submit(plan_of("pool=auto"), tmp_path)
    with pytest.raises(UserError, match=r"Ray's job server at http://127\.0\.0\.1:1"):
        RayScheduler().state(JobRecord(scheduler="ray", id="a", place="http://127.0.0.1:1"))
