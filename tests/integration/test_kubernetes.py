"""What a real control plane of Kubernetes makes of our files: opt-in, for it needs one's programs.

RLSERVE_TEST_KUBERNETES=/a/folder pytest tests/integration/test_kubernetes.py

The folder has ``kube-apiserver``, ``kube-controller-manager`` and ``kube-scheduler`` of a Kubernetes release, and
``etcd``. There is no kubelet and no KubeRay: objects are held and defaulted, pods are placed, and nothing starts.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import PROGRAMS, ControlPlane, node, running_control_plane

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("RLSERVE_TEST_KUBERNETES")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(FOLDER is None, reason="RLSERVE_TEST_KUBERNETES names no folder of Kubernetes' programs"),
]
SCHEMAS = ROOT / "tests" / "helpers"
SETTINGS = ("pool=h100_h200", "launch.image=me/rlserve:1", "launch.kubernetes.claim=runs", "tracking=off")
SPOT = {"key": "karpenter.sh/capacity-type", "value": "spot", "effect": "NoSchedule"}
GPU = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """With the kinds of KubeRay and of the Prometheus operator, and machines with GPUs."""
    programs = Path(FOLDER or "")
    missing = [name for name in PROGRAMS if not (programs / name).exists()]
    assert not missing, f"{programs} lacks {', '.join(missing)}"
    with running_control_plane(programs, tmp_path_factory.mktemp("kubernetes")) as plane:
        plane.apply(*definitions())
        kinds = ",".join(found["metadata"]["name"] for found in definitions())
        plane.wait_for_kinds(kinds)
        plane.apply(*volume())
        for made in machines():
            plane.kubectl("create", "--filename=-", given=json.dumps(made))
        yield plane


def machines() -> tuple[Any, ...]:
    """One without GPUs, and one of each type that is no spot machine."""
    return (
        node("cpus", {}),
        node("h100", {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, taints=[GPU], num_gpus=8),
        node("h200", {"nvidia.com/gpu.product": "NVIDIA-H200"}, taints=[GPU], num_gpus=8),
    )


def definitions() -> list[Any]:
    """Of the kinds that operators bring."""
    rayjob = json.loads(gzip.decompress((SCHEMAS / "rayjob_schema.json.gz").read_bytes()))
    monitoring = json.loads(gzip.decompress((SCHEMAS / "monitoring_schemas.json.gz").read_bytes()))
    return [
        definition("ray.io", "RayJob", rayjob),
        *(definition("monitoring.coreos.com", kind, schema) for kind, schema in monitoring.items()),
    ]


def definition(group: str, kind: str, schema: Any) -> Any:
    plural = f"{kind.lower()}s"
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [version],
        },
    }


def volume() -> list[Any]:
    """The claim ``runs``, and what it gets."""
    room = {"storage": "1Gi"}
    shared = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    of_disk = {
        **shared,
        "capacity": room,
        "hostPath": {"path": "/runs"},
        "claimRef": {"name": "runs", "namespace": "default"},
    }
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "runs"}, "spec": of_disk},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "runs", "namespace": "default"},
            "spec": {**shared, "resources": {"requests": room}, "volumeName": "runs"},
        },
    ]


def rlserve(plane: ControlPlane, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "rlserve", *arguments)
    return subprocess.run(command, cwd=ROOT, env=plane.environment, capture_output=True, text=True, timeout=180)


def submitted(plane: ControlPlane, folder: Path, name: str, *settings: str) -> str:
    """What ``rlserve submit`` says."""
    named = (f"name={name}", f"output_dir={folder}")
    done = rlserve(plane, "submit", "conf/rlhf.yaml", "--to", "kubernetes", *named, *SETTINGS, *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kinds_of(plane: ControlPlane, name: str) -> set[str]:
    kinds = "rayjob,configmap,poddisruptionbudget,networkpolicy,service"
    return {found["kind"] for found in plane.get(kinds, f"--selector=rlserve/run={name}")["items"]}


def test_a_run_is_submitted_followed_resumed_and_cancelled(plane: ControlPlane, tmp_path: Path) -> None:
    submitted(plane, tmp_path, "followed", "tracking.prometheus_port=9400")
    held = {"RayJob", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy", "Service"}
    assert kinds_of(plane, "followed") == held
    (job,) = plane.get("rayjob", "--selector=rlserve/run=followed")["items"]

    def status() -> str:
        done = rlserve(plane, "status", str(tmp_path / "followed"))
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "not seen by KubeRay yet" in status()
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    set_status(plane, "rayjob", "followed", running)
    assert "Running RUNNING" in status()

    failed = {"jobDeploymentStatus": "Failed", "message": "too many restarts"}
    set_status(plane, "rayjob", "followed", failed)
    done = rlserve(plane, "resume", str(tmp_path / "followed"))
    assert done.returncode == 0, done.stderr
    (again,) = plane.get("rayjob", "--selector=rlserve/run=followed")["items"]
    assert again["metadata"]["uid"] != job["metadata"]["uid"]  # one that ended does not begin again by being applied

    done = rlserve(plane, "cancel", str(tmp_path / "followed"))
    assert done.returncode == 0, done.stderr
    plane.wait("its end", lambda: True if not kinds_of(plane, "followed") else None)


def test_what_is_there_once_for_the_metrics_of_all_runs_is_held(plane: ControlPlane) -> None:
    plane.kubectl("apply", "--kustomize", str(ROOT / "launch" / "monitoring" / "training"))
    (monitor,) = plane.get("servicemonitor")["items"]
    (rule,) = plane.get("prometheusrule")["items"]
    assert monitor["metadata"]["name"] == rule["metadata"]["name"] == "rlserve-training"


def test_the_server_refuses_what_it_would_not_hold_before_anything_is_made(plane: ControlPlane, tmp_path: Path) -> None:
    named = ("name=nowhere", f"output_dir={tmp_path}", "launch.kubernetes.namespace=nowhere")
    done = rlserve(plane, "submit", "conf/rlhf.yaml", "--to", "kubernetes", *named, *SETTINGS)
    assert done.returncode != 0
    assert 'namespaces "nowhere" not found' in done.stderr
    assert "Traceback" not in done.stderr
    assert kinds_of(plane, "nowhere") == set()


def test_the_scheduler_places_each_pod_of_a_run_where_its_gpus_are(plane: ControlPlane, tmp_path: Path) -> None:
    """Pods are made of the job's templates, as KubeRay makes them."""
    submitted(
        plane, tmp_path, "placed", "pool.slots=[{type: H100, count: 8, prefer: train}, {type: H200-spot, count: 4}]"
    )
    cluster = plane.get("rayjob", "placed")["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    assert list(groups) == ["h100-0", "h200-spot-1"]
    plane.apply(*(pod_of(f"placed-{name}", template) for name, template in groups.items()))
    plane.apply(pod_of("placed-head", cluster["headGroupSpec"]["template"]))
    assert plane.place_of("placed-h100-0") == "h100"
    assert plane.place_of("placed-head") == "cpus"
    why = plane.wait("a refusal", lambda: why_not_placed(plane, "placed-h200-spot-1"))
    assert "affinity" in why  # the H200 that is there is no spot machine

    bought = node(
        "h200-spot",
        {"nvidia.com/gpu.product": "NVIDIA-H200", SPOT["key"]: SPOT["value"]},
        taints=[GPU, SPOT],
        num_gpus=8,
    )
    plane.kubectl("create", "--filename=-", given=json.dumps(bought))
    assert plane.place_of("placed-h200-spot-1") == "h200-spot"


def test_pods_of_a_run_that_goes_on_are_not_evicted(plane: ControlPlane, tmp_path: Path) -> None:
    submitted(plane, tmp_path, "kept")
    template = plane.get("rayjob", "kept")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    plane.apply(pod_of("kept-head", template))
    assert plane.place_of("kept-head") == "cpus"
    runs = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    set_status(plane, "pod", "kept-head", runs)

    def seen() -> Any:
        (budget,) = plane.get("poddisruptionbudget", "--selector=rlserve/run=kept")["items"]
        return budget["status"] if budget.get("status", {}).get("currentHealthy") else None

    assert plane.wait("the budget", seen)["disruptionsAllowed"] == 0
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "kept-head", "namespace": "default"},
    }
    path = "/api/v1/namespaces/default/pods/kept-head/eviction"
    refused = plane.try_kubectl("create", f"--raw={path}", "--filename=-", given=json.dumps(eviction))
    assert "disruption budget" in refused.stderr


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_servers_and_all_around_them_are_held_and_their_pods_made(plane: ControlPlane, overlay: str) -> None:
    folder = ROOT / "launch" / "kubernetes" / "serving" / "overlays" / overlay
    rendered = list(yaml.safe_load_all(plane.kubectl("kustomize", str(folder))))
    namespaces = {found["metadata"].get("namespace", "default") for found in rendered} - {"default"}
    plane.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in namespaces))
    plane.apply(*rendered)
    (deployment,) = (found for found in rendered if found["kind"] == "Deployment")
    space = f"--namespace={deployment['metadata'].get('namespace', 'default')}"
    selector = ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())

    def pods() -> Any:
        return plane.get(space, "pods", f"--selector={selector}")["items"] or None

    (pod, *_) = plane.wait("its pods", pods)
    assert pod["spec"]["priority"] == 100_000
    plane.kubectl(space, "delete", "deployment", deployment["metadata"]["name"])


def set_status(plane: ControlPlane, kind: str, name: str, status: Any) -> None:
    """As an operator or a kubelet would."""
    change = f"--patch={json.dumps({'status': status})}"
    plane.kubectl("patch", kind, name, "--subresource=status", "--type=merge", change)


def pod_of(name: str, template: Any) -> Any:
    metadata = {**template["metadata"], "name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def why_not_placed(plane: ControlPlane, pod: str) -> str | None:
    for condition in plane.get("pod", pod).get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition["message"])
    return None
