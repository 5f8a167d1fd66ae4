"""Runs in a real Kueue's queue on a real control plane of Kubernetes: opt-in, as test_kubernetes.py.

RLSERVE_TEST_KUBERNETES=/a/folder pytest tests/integration/test_kubernetes_queue.py

Beside Kubernetes' programs the folder has Kueue's manager as ``kueue``, and its release's ``manifests.yaml`` as
``kueue.yaml``. Kueue's webhooks are not installed, for nothing reaches a service of this cluster: what they would have
suspended at once, the manager suspends when it sees it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import ControlPlane, definitions_in, running_control_plane, running_program
from test_kubernetes import FOLDER, definitions, rlserve, submitted

from rlserve.distributed.addresses import free_port

PROGRAMS = ("kueue", "kueue.yaml")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not all((Path(FOLDER or "/nowhere") / name).exists() for name in PROGRAMS),
        reason="RLSERVE_TEST_KUBERNETES names no folder with Kueue in it",
    ),
]
QUEUE = "launch.kubernetes.queue=team"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """With the queue ``team``, which has room for the GPUs of one run."""
    programs, folder = Path(FOLDER or ""), tmp_path_factory.mktemp("queue")
    with running_control_plane(programs, folder) as plane:
        plane.apply(*definitions(), *definitions_in(programs / "kueue.yaml"))
        plane.wait_for_kinds("rayjobs,localqueues")
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kueue-system"}})
        secret = {"name": "kueue-webhook-server-cert", "namespace": "kueue-system"}  # Kueue writes there
        plane.apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret})
        with running_kueue(plane, programs, folder):
            plane.apply(*queue(num_gpus=12))
            yield plane


@contextmanager
def running_kueue(plane: ControlPlane, programs: Path, folder: Path) -> Iterator[None]:
    """Its manager, which finds certificates where a kubelet would have put its own."""
    certificates = folder / "kueue_certificates"
    certificates.mkdir()
    names = ("-keyout", str(certificates / "tls.key"), "-out", str(certificates / "tls.crt"))
    certify = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kueue", "-days", "2")
    subprocess.run((*certify, *names), check=True, capture_output=True)
    configuration = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta1",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{free_port()}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": free_port(), "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "namespace": "kueue-system",
        "integrations": {"frameworks": ["ray.io/rayjob"]},
    }
    file = folder / "kueue_configuration.yaml"
    file.write_text(yaml.safe_dump(configuration))
    command = (str(programs / "kueue"), f"--config={file}", "--feature-gates=VisibilityOnDemand=false")
    with running_program(command, folder / "kueue.log", environment=plane.environment):
        yield


def queue(*, num_gpus: int) -> list[Any]:
    """A queue of the namespace, and what it may have."""
    room = {"cpu": "1000", "memory": "8Ti", "nvidia.com/gpu": str(num_gpus)}
    quotas = [{"name": name, "nominalQuota": quota} for name, quota in room.items()]
    group = {"coveredResources": list(room), "flavors": [{"name": "any", "resources": quotas}]}
    spec = {"namespaceSelector": {}, "resourceGroups": [group]}
    api = {"apiVersion": "kueue.x-k8s.io/v1beta1"}
    return [
        {**api, "kind": "ResourceFlavor", "metadata": {"name": "any"}},
        {**api, "kind": "ClusterQueue", "metadata": {"name": "lab"}, "spec": spec},
        {
            **api,
            "kind": "LocalQueue",
            "metadata": {"name": "team", "namespace": "default"},
            "spec": {"clusterQueue": "lab"},
        },
    ]


def test_all_pods_of_a_run_are_admitted_at_once_and_the_next_run_waits_for_them(
    plane: ControlPlane, tmp_path: Path
) -> None:
    submitted(plane, tmp_path, "first", QUEUE)
    first = plane.wait("the first run's admission", lambda: admitted(plane, "first"))
    assert sorted(first.values()) == [1, 1, 1]  # its head, and a node of each type
    rayjob = plane.get("rayjob", "first")["spec"]
    assert not rayjob.get("suspend")
    assert rayjob["submissionMode"] == "SidecarMode"
    assert rayjob["rayClusterSpec"]["authOptions"] == {"mode": "token"}  # what Kueue does not know is left as it was

    submitted(plane, tmp_path, "second", QUEUE)
    plane.wait("the second run's suspension", lambda: plane.get("rayjob", "second")["spec"].get("suspend"))
    assert admitted(plane, "second") is None
    done = rlserve(plane, "status", str(tmp_path / "second"))
    assert "its queue has not admitted it" in done.stdout

    done = rlserve(plane, "cancel", str(tmp_path / "first"))
    assert done.returncode == 0, done.stderr
    assert plane.wait("the second run's admission", lambda: admitted(plane, "second"))
    plane.wait("its begin", lambda: not plane.get("rayjob", "second")["spec"].get("suspend") or None)


def admitted(plane: ControlPlane, run: str) -> dict[str, int] | None:
    """The pods of each part of a run that Kueue has room for; None before it has."""
    for workload in plane.get("workloads")["items"]:
        owners = {owner["name"] for owner in workload["metadata"].get("ownerReferences", [])}
        admission = workload.get("status", {}).get("admission")
        if run in owners and admission:
            return {part["name"]: part["count"] for part in admission["podSetAssignments"]}
    return None
