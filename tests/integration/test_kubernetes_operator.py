"""What a real KubeRay makes of runs on a real control plane of Kubernetes: opt-in, as test_kubernetes.py.

RLSERVE_TEST_KUBERNETES=/a/folder pytest tests/integration/test_kubernetes_operator.py

Beside Kubernetes' programs the folder has KubeRay's manager as ``kuberay``, and its custom resource definitions as
``kuberay.yaml``. There is no kubelet: pods are made and placed, and never start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane, definitions_in, running_control_plane, running_program
from test_kubernetes import FOLDER, machines, rlserve, submitted, volume

from rlserve.distributed.addresses import free_port

PROGRAMS = ("kuberay", "kuberay.yaml")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not all((Path(FOLDER or "/nowhere") / name).exists() for name in PROGRAMS),
        reason="RLSERVE_TEST_KUBERNETES names no folder with KubeRay in it",
    ),
]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    programs, folder = Path(FOLDER or ""), tmp_path_factory.mktemp("operator")
    with running_control_plane(programs, folder) as plane:
        plane.apply(*definitions_in(programs / "kuberay.yaml"))
        plane.wait_for_kinds("rayjobs,rayclusters,rayservices")
        plane.apply(*volume())
        for made in machines():
            plane.kubectl("create", "--filename=-", given=json.dumps(made))
        health, numbers = (f"127.0.0.1:{free_port()}" for _ in range(2))
        addresses = (f"--health-probe-bind-address={health}", f"--metrics-addr={numbers}")
        command = (str(programs / "kuberay"), *addresses, "--enable-leader-election=false")
        with running_program(command, folder / "kuberay.log", environment=plane.environment):
            yield plane


def test_a_run_becomes_a_cluster_whose_pods_are_placed_and_is_gone_when_cancelled(
    plane: ControlPlane, tmp_path: Path
) -> None:
    submitted(plane, tmp_path, "whole")
    pods = plane.wait("its pods", lambda: pods_of(plane, "whole", number=3))
    assert {group: plane.place_of(pod) for group, pod in pods.items()} == {
        "headgroup": "cpus",
        "h100-0": "h100",
        "h200-1": "h200",
    }
    head = plane.get("pod", pods["headgroup"])["spec"]
    assert {container["name"] for container in head["containers"]} == {"ray-head", "ray-job-submitter"}
    tokens = [
        entry for container in head["containers"] for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN"
    ]
    assert tokens
    assert all("secretKeyRef" in entry["valueFrom"] for entry in tokens)  # never in the open
    done = rlserve(plane, "status", str(tmp_path / "whole"))
    assert "Initializing" in done.stdout

    done = rlserve(plane, "cancel", str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    plane.wait("the end of its pods", lambda: True if all_end(plane, "whole") else None)


def test_a_run_that_grows_gets_rays_autoscaler(plane: ControlPlane, tmp_path: Path) -> None:
    growth = ("scale_out.max_slots={H200-spot: 16}", "scale_out.slots_per_node={H200-spot: 4}")
    submitted(plane, tmp_path, "growing", *growth)
    pods = plane.wait("its pods", lambda: pods_of(plane, "growing", number=3))
    head = plane.get("pod", pods["headgroup"])["spec"]
    assert "autoscaler" in {container["name"] for container in head["containers"]}
    (cluster,) = plane.get("rayclusters", "--selector=ray.io/originated-from-cr-name=growing")["items"]
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"]
    most = {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in spec["workerGroupSpecs"]}
    assert (0, 4) in most.values()
    rlserve(plane, "cancel", str(tmp_path / "growing"))


def pods_of(plane: ControlPlane, run: str, *, number: int) -> dict[str, str] | None:
    """By group, once there are so many."""
    found = plane.get("pods", f"--selector=rlserve/run={run}")["items"]
    if len(found) < number:
        return None
    return {pod["metadata"]["labels"]["ray.io/group"]: pod["metadata"]["name"] for pod in found}


def all_end(plane: ControlPlane, run: str) -> bool:
    """Whether its pods are told to end, or gone."""
    found: list[Any] = plane.get("pods", f"--selector=rlserve/run={run}")["items"]
    return all(pod["metadata"].get("deletionTimestamp") for pod in found)
