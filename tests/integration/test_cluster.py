"""A real Ray cluster of two nodes on this machine, with slots of one type on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupted import interruptions
from ray_clusters import ENVIRONMENT, running_cluster
from runs import DEADLINE_S, Workplace, merged

pytestmark = pytest.mark.slow

CLUSTER = r"""
import json, sys, time
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
head = {"resources": {"cpu-a": 1}, "num_cpus": 1, "include_dashboard": True, "dashboard_port": 0}
head["dashboard_agent_listen_port"] = 0  # by the usual one, a run beside this one may have its own
head["_system_config"] = {
    "worker_niceness": 0,  # at Ray's 15, any other load starves workers
    "prestart_worker_first_driver": False,  # ours are none of Ray's idle ones
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,  # a node that vanishes is noticed within seconds
}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(resources={"cpu-b": 1}, num_cpus=1)
cluster.wait_for_nodes()
print(json.dumps({"address": cluster.address, "dashboard": cluster.head_node.webui_url}), flush=True)
added = {}
for line in sys.stdin:
    order, name, *count = line.split()
    if order == "add":
        added[name] = cluster.add_node(resources={name: int(count[0])}, num_cpus=1)
    elif order == "kill":
        cluster.remove_node(added[name], allow_graceful=False)
    else:
        soon_ms = int((time.time() + 600) * 1000)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        GcsClient(address=cluster.address).drain_node(added[name].node_id, reason, "test", soon_ms)
    print(order, flush=True)
cluster.shutdown()
"""
NUM_STEPS = 8
NODES = r"""
import json, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
from ray.util.state import list_actors
print(json.dumps({
    "alive": [node["Alive"] for node in ray.nodes()],
    "types": {node["NodeID"]: [name for name in node["Resources"] if name.startswith("cpu-")] for node in ray.nodes()},
    "available": ray.available_resources(),
}))
"""


class Cluster:
    """Two nodes, and those that a test adds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        self.address: str = addresses["address"]
        self.dashboard: str = addresses["dashboard"]

    def order(self, *words: str) -> None:
        """``add TYPE COUNT`` a node, or let it ``drain TYPE`` or ``kill TYPE``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().split() == [words[0]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(CLUSTER) as process:
        yield Cluster(process)


def look(address: str) -> dict[str, Any]:
    """What the cluster's nodes offer now."""
    command = [sys.executable, "-c", NODES, address]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def on_cluster(address: str) -> dict[str, Any]:
    pool = {"slots": "auto", "switch_timeout_s": 120.0}  # whose first moves import all that a worker needs
    return {"num_steps": 2, "launch": {"kind": "cluster", "address": address}, "pool": pool}


def test_nodes_come_and_go_while_a_run_uses_the_cluster(workplace: Workplace, cluster: Cluster) -> None:
    """Both nodes of the start are used all the time. One joins and leaves with a notice, another vanishes."""
    changes = {"num_steps": NUM_STEPS, "manager": {"interval_s": 0.2}, "reward": {"timeout_s": DEADLINE_S}}
    changes = merged(on_cluster(cluster.address), changes)
    run = workplace.start("joined", changes, environment=ENVIRONMENT)
    run.wait_until(lambda: run.num_steps() >= 1, "a step")
    workplace.hold()
    cluster.order("add", "cpu-c", "2")
    run.wait_until(lambda: {run.owners().get(f"cpu-c/{number}") for number in (0, 1)} == {"train", "rollout"}, "roles")
    cluster.order("add", "cpu-d", "1")  # only now: which newcomer gets which role depends on the order
    run.wait_until(lambda: run.owners().get("cpu-d/0") in ("train", "rollout"), "a role for the other newcomer")
    cluster.order("drain", "cpu-c")
    workplace.release()
    run.wait_until(lambda: {run.owners()[f"cpu-c/{number}"] for number in (0, 1)} == {"gone"}, "the node emptied")
    assert run.events("failure") == []
    workplace.hold()
    cluster.order("kill", "cpu-d")
    run.wait_until(lambda: run.owners()["cpu-d/0"] == "gone", "the vanished node noticed")
    workplace.release()
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    summary = json.loads((run.folder / "summary.json").read_text())
    trained = [group_id for line in run.lines("samples.jsonl") for group_id in line["group_ids"]]
    assert len(trained) == len(set(trained)) == summary["groups_trained"] == summary["groups_admitted"] == NUM_STEPS * 4
    assert [event["slot_id"] for event in run.events("failure")] == ["cpu-d/0"]
    workers = [event["slot_id"] for event in run.events("worker")]
    assert sorted(workers) == ["cpu-a/0", "cpu-b/0", "cpu-c/0", "cpu-c/1", "cpu-d/0"], "nobody was replaced"
    nodes = look(cluster.address)
    assert {"cpu-a", "cpu-b"} <= {name for names in nodes["types"].values() for name in names}
    run.wait_for_no_processes()
    deadline = time.monotonic() + DEADLINE_S
    while {"cpu-a", "cpu-b"} - look(cluster.address)["available"].keys():
        assert time.monotonic() < deadline, "the slots are not given back"
    cluster.order("kill", "cpu-c")


def rlserve(workplace: Workplace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in the folder that holds ``runs``."""
    return subprocess.run(
        [sys.executable, "-m", "rlserve", *arguments],
        cwd=workplace.place,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def status(workplace: Workplace) -> dict[str, Any]:
    done = rlserve(workplace, "status", "job", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def wait_for(condition: Callable[[], bool], workplace: Workplace) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, rlserve(workplace, "logs", "job", "--job").stdout
        time.sleep(0.2)


def test_a_run_that_is_submitted_stopped_and_taken_up_again(workplace: Workplace, cluster: Cluster) -> None:
    """The job's stop is a SIGTERM: the run saves, and its next job goes on from there."""
    ray = {"address": f"http://{cluster.dashboard}", "python": sys.executable}
    config = workplace.config({"num_steps": 500, "launch": {"ray": ray}, "pool": {"slots": "auto"}})
    done = rlserve(workplace, "submit", str(config), "--to", "ray", "name=job")
    assert done.returncode == 0, done.stderr
    samples = workplace.place / "runs" / "job" / "samples.jsonl"
    wait_for(lambda: samples.exists() and samples.read_text().count("\n") >= 2, workplace)
    assert status(workplace)["job"].endswith(": RUNNING")
    assert rlserve(workplace, "cancel", "job", "--wait", str(DEADLINE_S)).returncode == 0
    stopped = status(workplace)
    assert stopped["state"] == "stopped"
    assert Path(stopped["checkpoint"]).name == f"step_{stopped['step']:06d}"
    wait_for(lambda: bool(status(workplace)["job"].endswith(": STOPPED")), workplace)
    num_steps = stopped["step"] + 2
    done = rlserve(workplace, "resume", "job", f"num_steps={num_steps}")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not status(workplace)["job"].endswith((": PENDING", ": RUNNING")), workplace)
    ended = status(workplace)
    assert ended["job"].endswith(": SUCCEEDED"), ended["job"] + rlserve(workplace, "logs", "job", "--job").stdout
    assert ended["state"] == "finished"
    assert [json.loads(line)["step"] for line in samples.read_text().splitlines()] == list(range(1, num_steps + 1))
    (lost,) = interruptions(samples.parent, "a job of a Ray cluster, cancelled and resumed")
    assert (lost.step, lost.ended_by, lost.num_again, lost.is_over) == (stopped["step"], "SIGTERM", 0, True)


def test_more_slots_than_the_cluster_has(workplace: Workplace, cluster: Cluster) -> None:
    changes = on_cluster(cluster.address) | {"pool": {"slots": [{"type": "cpu-a", "count": 3}]}}
    run = workplace.start("greedy", changes, environment=ENVIRONMENT)
    assert run.wait() == 2, run.output
    assert "pool.slots asks for cpu-a × 3, but there is: cpu-a × 1, cpu-b × 1" in run.output
    assert "Traceback" not in run.output


def test_an_address_where_nobody_answers(workplace: Workplace) -> None:
    run = workplace.start("nowhere", on_cluster("127.0.0.1:1"), environment=ENVIRONMENT)
    assert run.wait() == 2, run.output
    assert "no Ray cluster answers at 127.0.0.1:1 (launch.address)" in run.output
    assert "Traceback" not in run.output
