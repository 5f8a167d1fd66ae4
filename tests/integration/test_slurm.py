"""Jobs of a real Slurm of two machines, both of them this one. Opt-in, for it needs Slurm and root:

RLSERVE_TEST_SLURM=1 pytest -rP tests/integration/test_slurm.py    # Debian: apt-get install slurm-wlm munge

``-rP`` shows what the interruptions cost in time.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from interrupted import interruptions
from runs import Workplace

PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("RLSERVE_TEST_SLURM" not in os.environ, reason="RLSERVE_TEST_SLURM is not set"),
]
EVENT_S = 600.0
"""Longest that anything is waited for: a run takes minutes to start on a busy machine, so only a hang reaches it."""
REQUEUE_S = 900.0
"""The same of a job that was queued again: Slurm holds it back for two minutes."""

SLURM_CONF = """
ClusterName=rlserve
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=8 RealMemory=1000 Gres=gpu:h100:4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=8 RealMemory=1000 Gres=gpu:a10:4
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=10
"""
GRES_CONF = """
NodeName=n1 Name=gpu Type=h100 File=/dev/tty[10-13]
NodeName=n2 Name=gpu Type=a10 File=/dev/tty[14-17]
"""


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm of our own; yields the environment in which its programs are its."""
    assert not MISSING, f"these programs are missing: {', '.join(MISSING)}"
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    port, port_1, port_2 = free_ports(3)
    text = SLURM_CONF.format(host=socket.gethostname(), folder=folder, port=port, port_1=port_1, port_2=port_2)
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(GRES_CONF)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    path = f"{os.environ['PATH']}:/usr/sbin"
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file", "log-file")]
    commands = [
        ["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    daemons: list[subprocess.Popen[str]] = []
    with (folder / "output").open("w") as output:
        try:
            for command in commands:
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)
                )
                wait_for((folder / "munge.socket").exists, "munge")
            wait_for(lambda: said(environment, "sinfo", "--noheader", "--format=%T").split() == ["idle"], "nodes")
            yield environment
            said(environment, "scancel", "--user=root")
            wait_for(lambda: not said(environment, "squeue", "--noheader"), "the end of all jobs")
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(60)


def said(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=EVENT_S).stdout


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = EVENT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.2)


class Client:
    """The command line, where runs lie."""

    def __init__(self, workplace: Workplace, environment: dict[str, str]) -> None:
        self.place = workplace.place
        self._environment = environment

    def rlserve(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "rlserve", *arguments]
        done = subprocess.run(
            command, cwd=self.place, env=self._environment, capture_output=True, text=True, timeout=2 * EVENT_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


class SubmittedRun:
    """A run that is a job."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.rlserve = client.rlserve
        self.folder = client.place / "runs" / name

    @property
    def job(self) -> str:
        """Number of its newest job."""
        return str(json.loads((self.folder / "job.json").read_text())["id"])

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.rlserve("status", self.name, "--json")))

    def steps(self) -> list[int]:
        samples = self.folder / "samples.jsonl"
        return [json.loads(line)["step"] for line in samples.read_text().splitlines()] if samples.exists() else []

    def groups(self) -> list[str]:
        lines = (self.folder / "samples.jsonl").read_text().splitlines()
        return [group for line in lines for group in json.loads(line)["group_ids"]]

    def log(self) -> str:
        return (self.folder / "job" / f"slurm-{self.job}.log").read_text()

    def wait_for_step(self, step: int, timeout_s: float = EVENT_S) -> None:
        wait_for(lambda: step in self.steps(), f"step {step}", timeout_s)


def submit(workplace: Workplace, environment: dict[str, str], name: str, changes: dict[str, Any]) -> SubmittedRun:
    """A small run as a job."""
    client = Client(workplace, environment)
    config = workplace.config({"num_steps": 5000, **changes})
    client.rlserve("submit", str(config), "--to", "slurm", f"name={name}")
    return SubmittedRun(client, name)


def preempt(environment: dict[str, str], num_nodes: int) -> str:
    """A job of higher priority that takes that many whole machines for some seconds; returns its number."""
    size = ["--partition=high", f"--nodes={num_nodes}", "--ntasks-per-node=1", "--cpus-per-task=8"]
    return said(environment, "sbatch", "--parsable", *size, "--output=/dev/null", "--wrap=sleep 5").strip()


def test_a_job_of_two_types_that_is_preempted_goes_on_where_it_stopped(
    workplace: Workplace, slurm: dict[str, str]
) -> None:
    """Two components; then a job of higher priority takes both machines for some seconds."""
    run = submit(workplace, slurm, "preempted", {})
    run.wait_for_step(3)
    assert said(slurm, "squeue", "--noheader", "--format=%i").split() == [f"{run.job}+0", f"{run.job}+1"]
    other = preempt(slurm, num_nodes=2)
    wait_for(lambda: "queued again" in run.log(), "requeue")
    stopped_at = run.steps()[-1]
    assert (run.folder / "checkpoints" / f"step_{stopped_at:06d}" / "manifest.json").is_file()
    wait_for(lambda: "COMPLETED" in said(slurm, "scontrol", "show", "job", other), "the other job's end")
    assert "queued again 1×" in run.status()["job"]
    run.wait_for_step(stopped_at + 2, REQUEUE_S)
    run.rlserve("cancel", run.name, "--wait", str(EVENT_S))
    wait_for(lambda: not said(slurm, "squeue", "--noheader"), "the job's end")
    ended = run.status()
    assert (ended["state"], ended["step"]) == ("stopped", run.steps()[-1])
    assert run.steps() == list(range(1, ended["step"] + 1)), "no step was lost or done twice"
    assert len(run.groups()) == len(set(run.groups()))
    (lost,) = interruptions(run.folder, "Slurm, a preempted job of two components")
    assert (lost.step, lost.ended_by, lost.num_again, lost.is_over) == (stopped_at, "SIGTERM", 0, True)


def test_a_run_whose_process_is_killed_is_queued_again_and_a_cancelled_one_is_not(
    workplace: Workplace, slurm: dict[str, str]
) -> None:
    """One component on one machine. What a SIGKILL leaves is the last checkpoint; here there is none yet."""
    slots = {"pool": {"slots": [{"type": "cpu", "count": 2}]}}
    run = submit(workplace, slurm, "killed", slots)
    run.wait_for_step(2)
    os.kill(json.loads((run.folder / "owner.json").read_text())["process_id"], 9)
    wait_for(lambda: "queued again" in run.log(), "requeue")
    run.wait_for_step(run.steps()[-1] + 1, REQUEUE_S)
    run.rlserve("cancel", run.name, "--wait", str(EVENT_S))
    wait_for(lambda: not said(slurm, "squeue", "--noheader"), "the job's end")
    assert run.log().count("queued again") == 1
    step = run.status()["step"]
    run.rlserve("resume", run.name, f"num_steps={step + 2}")
    wait_for(lambda: run.status()["state"] == "finished", "the end")
    assert run.steps() == list(range(1, step + 3))
    killed, cancelled = interruptions(
        run.folder, "Slurm, a run that was killed, and one that was cancelled and resumed"
    )
    assert (killed.ended_by, killed.num_again, killed.is_over) == ("killed", killed.step, True), "no checkpoint yet"
    assert (cancelled.ended_by, cancelled.num_again, cancelled.is_over) == ("SIGUSR1", 0, True)


def test_of_two_runs_of_an_array_one_is_preempted_and_goes_on(workplace: Workplace, slurm: dict[str, str]) -> None:
    """Each has a machine; a job of higher priority takes one of them. The other run does not notice."""
    client = Client(workplace, slurm)
    changes = {
        "num_steps": 5000,
        "pool": {"slots": [{"type": "cpu", "count": 2}]},
        "launch": {"slurm": {"options": ["--exclusive"]}},
    }
    client.rlserve("sweep", str(workplace.config(changes)), "seed=1,2", "name=both", "--to", "slurm")
    runs = [SubmittedRun(client, f"both-{number}") for number in (1, 2)]
    array = runs[0].job.partition("_")[0]
    assert [run.job for run in runs] == [f"{array}_1", f"{array}_2"]
    for run in runs:
        run.wait_for_step(2)
    assert sorted(said(slurm, "squeue", "--noheader", "--format=%i").split()) == [f"{array}_1", f"{array}_2"]
    preempt(slurm, num_nodes=1)
    wait_for(lambda: any("queued again" in run.log() for run in runs), "requeue")
    (preempted,) = [run for run in runs if "queued again" in run.log()]
    (other,) = [run for run in runs if run is not preempted]
    stopped_at = preempted.steps()[-1]
    other.wait_for_step(other.steps()[-1] + 2)
    jobs = {each["name"]: each["job"] for each in json.loads(client.rlserve("status", "both", "--json"))}
    assert "queued again 1×" in jobs[preempted.name]
    assert jobs[other.name] == f"slurm {other.job}: RUNNING"
    client.rlserve("cancel", other.name, "--wait", str(EVENT_S))
    assert "COMPLETED" not in said(slurm, "scontrol", "show", "job", preempted.job)
    preempted.wait_for_step(stopped_at + 2, REQUEUE_S)
    client.rlserve("cancel", "both", "--wait", str(EVENT_S))
    wait_for(lambda: not said(slurm, "squeue", "--noheader"), "the end of all jobs")
    assert "queued again" not in other.log()
    assert preempted.log().count("queued again") == 1
    last = max(run.steps()[-1] for run in runs) + 2
    client.rlserve("resume", "both", f"num_steps={last}")
    assert runs[0].job.partition("_")[0] == runs[1].job.partition("_")[0] != array
    for run in runs:
        wait_for(lambda run=run: run.status()["state"] == "finished", f"the end of {run.name}")  # type: ignore[misc]
        assert run.steps() == list(range(1, last + 1)), "no step was lost or done twice"
    lost, _ = interruptions(preempted.folder, "Slurm, a preempted task of an array, and its cancelled sweep")
    assert (lost.step, lost.ended_by, lost.num_again) == (stopped_at, "SIGTERM", 0)


def test_gpus_are_asked_for_by_their_type(workplace: Workplace, slurm: dict[str, str]) -> None:
    """Slurm itself checks what is asked for; there are no such GPUs, so nothing is begun."""
    slots = {
        "pool": {"slots": [{"type": "H100", "count": 4}, {"type": "A10", "count": 4}]},
        "launch": {"cpus_per_gpu": 2},
    }
    said(slurm, "scontrol", "update", "partitionname=low", "state=down")
    run = submit(workplace, slurm, "typed", slots)
    first, second = said(slurm, "scontrol", "--oneliner", "show", "job", run.job).splitlines()
    assert "gres:gpu:h100:4" in first
    assert "gres:gpu:a10:4" in second
    assert run.status()["state"] == "waiting"
    run.rlserve("cancel", run.name)
    wait_for(lambda: not said(slurm, "squeue", "--noheader"), "the job's end")
    said(slurm, "scontrol", "update", "partitionname=low", "state=up")
