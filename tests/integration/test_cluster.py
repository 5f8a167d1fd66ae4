"""A real Ray cluster of two nodes on this machine, with slots of one type on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import DEADLINE_S, Workplace

pytestmark = pytest.mark.slow

# No token: these nodes live for this test alone, on the loopback device.
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
CLUSTER = r"""
import json, sys
from ray.cluster_utils import Cluster
head = {"resources": {"cpu-a": 1}, "num_cpus": 1, "include_dashboard": True, "dashboard_port": 0}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(resources={"cpu-b": 1}, num_cpus=1)
cluster.wait_for_nodes()
print(json.dumps({"address": cluster.address, "dashboard": cluster.head_node.webui_url}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Mapping[str, str]]:
    """Addresses of the cluster: of Ray itself, and of its dashboard."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())
    process.stdin.close()
    process.wait(DEADLINE_S)


def look(address: str) -> dict[str, Any]:
    """What the cluster's nodes offer now."""
    command = [sys.executable, "-c", NODES, address]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def on_cluster(address: str) -> dict[str, Any]:
    return {"num_steps": 2, "launch": {"kind": "cluster", "address": address}, "pool": {"slots": "auto"}}


def test_a_run_uses_both_nodes_and_leaves_the_cluster_alive(workplace: Workplace, cluster: Mapping[str, str]) -> None:
    run = workplace.start("joined", on_cluster(cluster["address"]), environment=ENVIRONMENT)
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    assert run.num_steps() == 2
    assert {event["slot_id"]: event["slot_type"] for event in run.events("slot")} == {
        "cpu-a/0": "cpu-a",
        "cpu-b/0": "cpu-b",
    }
    nodes = look(cluster["address"])
    assert nodes["alive"] == [True, True]
    assert sorted(nodes["types"].values()) == [["cpu-a"], ["cpu-b"]], "each type is on a node of its own"
    run.wait_for_no_processes()
    deadline = time.monotonic() + DEADLINE_S
    while {"cpu-a", "cpu-b"} - look(cluster["address"])["available"].keys():
        assert time.monotonic() < deadline, "the slots are not given back"


def test_a_run_as_the_entry_point_of_a_job(workplace: Workplace, cluster: Mapping[str, str]) -> None:
    config = workplace.config({"num_steps": 2, "launch": {"kind": "cluster"}, "pool": {"slots": "auto"}})
    script = (
        "from ray.job_submission import JobSubmissionClient\n"
        "import sys, time\n"
        f"client = JobSubmissionClient('http://{cluster['dashboard']}')\n"
        "job = client.submit_job(entrypoint=sys.argv[1])\n"
        "while not client.get_job_status(job).is_terminal():\n"
        "    time.sleep(0.2)\n"
        "print(client.get_job_logs(job))\n"
        "print(client.get_job_status(job))\n"
    )
    entry_point = f"cd {workplace.place} && {sys.executable} -m rlserve launch {config} name=job"
    done = subprocess.run(
        [sys.executable, "-c", script, entry_point],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.stdout.rstrip().endswith("SUCCEEDED"), done.stdout + done.stderr
    folder: Path = workplace.place / "runs" / "job"
    assert json.loads((folder / "summary.json").read_text())["num_steps"] == 2


def test_more_slots_than_the_cluster_has(workplace: Workplace, cluster: Mapping[str, str]) -> None:
    changes = on_cluster(cluster["address"]) | {"pool": {"slots": [{"type": "cpu-a", "count": 3}]}}
    run = workplace.start("greedy", changes, environment=ENVIRONMENT)
    assert run.wait() == 2, run.output
    assert "pool.slots asks for cpu-a × 3, but there is: cpu-a × 1, cpu-b × 1" in run.output
    assert "Traceback" not in run.output


def test_an_address_where_nobody_answers(workplace: Workplace) -> None:
    run = workplace.start("nowhere", on_cluster("127.0.0.1:1"), environment=ENVIRONMENT)
    assert run.wait() == 2, run.output
    assert "no Ray cluster answers at 127.0.0.1:1 (launch.address)" in run.output
    assert "Traceback" not in run.output
