"""How long a run needs that lost its head: what was killed, what started it again, what was done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos_parts.run_watch import ROOT, RunWatch
from chaos_parts.verdict import judge

from node_parts.cluster import ENVIRONMENT, Cluster, wait_for
from node_parts.following import follow
from rlserve.tracking.cost.interruptions import Interruption, find_interruptions
from rlserve.tracking.jsonl import read_json_lines

SAVE_EVERY = 10
_KILLED_AT = 13
_NUM_STEPS = 20
_GRACE_S = 30
_SETTINGS = ("tracking=off", "tracking.report=false", "manager=static", f"num_steps={_NUM_STEPS}")
_RESUME_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A run whose head was killed, and which went on."""

    what: str
    resumed_s: float
    """From the kill to the end of the first step that had not been done before."""
    num_again: int
    """Steps that were done again."""
    num_lost: int
    """Prompt groups or steps, of the whole run."""
    num_trained_twice: int
    interruption: Interruption
    """As the run's own records have it (``rlserve cost``)."""


def local_loss(folder: Path) -> Loss:
    """Driver and Ray's head on one machine, killed at once; the same command goes on, as a loop in a shell would."""
    arguments = [str(ROOT / "conf" / "rlhf.yaml"), "name=killed", f"output_dir={folder}", *_SETTINGS]
    arguments += [f"checkpoint.every_steps={SAVE_EVERY}", "--continue"]
    run = RunWatch(folder / "killed", arguments)
    try:
        follow(run, lambda _: run.step >= _KILLED_AT, "the step to be killed at")
        killed_s, last = time.monotonic(), run.step
        for process in [psutil.Process(run.process.pid), *run.processes()]:
            if process.pid == run.process.pid or process.name() in ("gcs_server", "raylet"):
                process.send_signal(signal.SIGKILL)
        run.process.wait()
    finally:
        if not run.has_ended:
            run.end()
    resumed_s = _back_s(RunWatch(folder / "killed", arguments), last) - killed_s
    return _loss("the driver and Ray's head on one machine", folder / "killed", resumed_s)


def job_loss(folder: Path) -> Loss:
    """A job of a Ray cluster whose head is killed with all that is on it. A new head comes at another address, and a
    loop asks for ``rlserve resume`` until that is taken."""
    run_folder = folder / "job"
    config = [str(ROOT / "conf" / "rlhf.yaml"), "--to", "ray", "name=job", f"output_dir={folder}", "pool=auto"]
    config += [*_SETTINGS, f"checkpoint.every_steps={SAVE_EVERY}", f"launch.ray.python={sys.executable}"]
    with Cluster("cpu-a", "cpu-b", dashboard=True) as cluster:
        where = f"launch.ray.address=http://127.0.0.1:{cluster.dashboard_port}"
        wait_for(lambda: _rlserve(["submit", *config, where]), "taking of a job", poll_s=_RESUME_INTERVAL_S)
        wait_for(lambda: _last_step(run_folder) >= _KILLED_AT, "the step to be killed at")
        killed_s, last = time.monotonic(), _last_step(run_folder)
    with Cluster("cpu-a", "cpu-b", dashboard=True) as cluster:
        where = f"launch.ray.address=http://127.0.0.1:{cluster.dashboard_port}"
        wait_for(lambda: _rlserve(["resume", str(run_folder), where]), "taking again", poll_s=_RESUME_INTERVAL_S)
        wait_for(lambda: _last_step(run_folder) > last, "a new step")
        resumed_s = time.monotonic() - killed_s
        wait_for((run_folder / "summary.json").exists, "end of the run")
    return _loss("a Ray job's cluster", run_folder, resumed_s)


def pod_loss(folder: Path) -> Loss:
    """The pod of a head is evicted: what its ``preStop`` does, then all pods are killed, and the same command begins on
    a new cluster, as KubeRay has it. Nodes are processes of this machine, so pods and images take no time."""
    arguments = [str(ROOT / "conf" / "rlhf.yaml"), "name=evicted", f"output_dir={folder}", *_SETTINGS, "--continue"]
    arguments += ["launch.kind=cluster", "pool=auto", f"checkpoint.every_steps={SAVE_EVERY}"]
    with Cluster("cpu-a", "cpu-b") as cluster:
        run = RunWatch(folder / "evicted", [*arguments, f"launch.address={cluster.address}"])
        try:
            follow(run, lambda _: run.step >= _KILLED_AT, "the step to be evicted at")
            evicted_s = time.monotonic()
            _rlserve(["cancel", str(folder / "evicted"), "--here", "--wait", str(_GRACE_S)])
        finally:
            run.end()
        last = _last_step(folder / "evicted")
    with Cluster("cpu-a", "cpu-b") as cluster:
        again = RunWatch(folder / "evicted", [*arguments, f"launch.address={cluster.address}"])
        resumed_s = _back_s(again, last) - evicted_s
    return _loss("the pods of a run", folder / "evicted", resumed_s)


def _back_s(again: RunWatch, last: int) -> float:
    """When a run that was taken up again did a step beyond ``last``, on the monotonic clock; then it has ended, too."""
    try:
        again.look()
        follow(again, lambda _: again.step > last, "a new step")
        back_s = time.monotonic()
        wait_for(lambda: again.has_ended, "end of the run")
    finally:
        again.end()
    return back_s


def _loss(what: str, folder: Path, resumed_s: float) -> Loss:
    verdict, events = judge(folder), read_json_lines(folder / "events.jsonl")
    steps = [event["step"] for event in events if event["event"] == "step"]
    (interruption,) = find_interruptions(events)
    return Loss(
        what=what,
        resumed_s=resumed_s,
        num_again=len(steps) - len(set(steps)),
        num_lost=verdict.num_lost,
        num_trained_twice=verdict.num_trained_twice,
        interruption=interruption,
    )


def _last_step(folder: Path) -> int:
    path = folder / "events.jsonl"
    if not path.exists():
        return 0
    return max((event["step"] for event in read_json_lines(path) if event["event"] == "step"), default=0)


def _rlserve(arguments: list[str]) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "rlserve", *arguments],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stderr[-500:])
    return done.returncode == 0
