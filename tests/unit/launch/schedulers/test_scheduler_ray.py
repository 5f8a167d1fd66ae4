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
        "set -a && . '/home/me/it'\"'\"'s.env' && set +a && exec python3 -m rlserve launch run.yaml --continue\n"
    )
    checked = subprocess.run(["sh", "-n"], input=files["entrypoint.sh"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_ray_can_read_what_it_is_told(tmp_path: Path) -> None:
    files = RayScheduler().render(plan_of("pool=auto", "launch.ray.stop_wait_s=90"))
    content = yaml.safe_load(files["runtime_env.yaml"])
    assert content == {"working_dir": "/data/runs/hello/job", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}
    assert RuntimeEnv(**{**content, "working_dir": str(tmp_path)}).env_vars() == content["env_vars"]
    assert files["entrypoint.sh"] == "exec python3 -m rlserve launch run.yaml --continue\n"


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
