"""A control plane of Kubernetes on this machine: etcd, API server, controllers and scheduler, and no kubelet.

::

    kubectl ──► kube-apiserver ──► etcd
                  ▲       ▲
    kube-controller-manager  kube-scheduler ──► nodes that are objects alone: pods are placed there, and never start
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rlserve.distributed.addresses import free_port

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_DEADLINE_S = 120.0
_TOKEN = "token-for-tests"
_SERVICES = "10.0.0.0/24"

_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """One that runs.

    Attributes:
        environment: in which kubectl asks it.
    """

    environment: Mapping[str, str]

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What it prints; fails where kubectl does."""
        done = self.try_kubectl(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def try_kubectl(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """How it ended."""
        return subprocess.run(
            ("kubectl", *arguments), input=given, env=self.environment, capture_output=True, text=True, timeout=60
        )

    def apply(self, *objects: Any) -> None:
        """Make objects, or change them; unknown keys are refused."""
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--validate=strict", "--filename=-", given=content)

    def get(self, *arguments: str) -> Any:
        """Objects as they are."""
        return json.loads(self.kubectl("get", "--output=json", *arguments))

    def wait(self, what: str, look: Callable[[], _Found | None]) -> _Found:
        """Until ``look`` finds something."""
        return _wait(what, look)

    def wait_for_kinds(self, kinds: str) -> None:
        """Until it knows them, by their plurals with commas between."""
        self.wait("its kinds", lambda: self.try_kubectl("get", kinds).returncode == 0 or None)

    def place_of(self, pod: str) -> str:
        """The machine that a pod is placed on."""
        place: str = self.wait(f"a place for {pod}", lambda: self.get("pod", pod)["spec"].get("nodeName"))
        return place


@contextmanager
def running_control_plane(programs: Path, folder: Path) -> Iterator[ControlPlane]:
    """It answers, and lets ``default`` have pods, while the context is open.

    Args:
        programs: folder of the programs.
        folder: for its files.
    """
    client, peer, port = free_port(), free_port(), free_port()
    etcd, server = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{port}"
    key, tokens, access = folder / "accounts.key", folder / "tokens.csv", folder / "kubeconfig"
    subprocess.run(("openssl", "genrsa", "-out", str(key), "2048"), check=True, capture_output=True)
    tokens.write_text(f"{_TOKEN},admin,admin,system:masters\n")
    access.write_text(json.dumps(_kubeconfig(server, folder / "certificates" / "apiserver.crt")))
    plane = ControlPlane(environment={**os.environ, "KUBECONFIG": str(access)})
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> None:
            stack.enter_context(running_program((str(programs / name), *arguments), folder / f"{name}.log"))

        peers = f"http://127.0.0.1:{peer}"
        start(
            "etcd",
            *(f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            f"--initial-cluster=default={peers}",
        )
        start(
            "kube-apiserver",
            *(f"--etcd-servers={etcd}", f"--secure-port={port}", "--bind-address=127.0.0.1"),
            *("--advertise-address=127.0.0.1", f"--cert-dir={folder / 'certificates'}"),
            *(f"--token-auth-file={tokens}", "--authorization-mode=RBAC", f"--service-cluster-ip-range={_SERVICES}"),
            *(f"--service-account-issuer={server}", f"--service-account-key-file={key}"),
            f"--service-account-signing-key-file={key}",
        )
        _wait("the API server", lambda: plane.try_kubectl("get", "--raw=/readyz").returncode == 0 or None)
        own = (f"--kubeconfig={access}", "--leader-elect=false", "--secure-port=0")
        start(
            "kube-controller-manager",
            *(*own, f"--service-account-private-key-file={key}", "--use-service-account-credentials=false"),
            "--node-monitor-grace-period=24h",  # nodes of tests have no kubelet that says it is there
        )
        start("kube-scheduler", *own)
        account = ("get", "serviceaccount", "default")
        _wait("the first account", lambda: plane.try_kubectl(*account).returncode == 0 or None)
        yield plane


def node(name: str, labels: Mapping[str, str], *, taints: Sequence[Mapping[str, str]] = (), num_gpus: int = 0) -> Any:
    """A machine that is ready, and has no kubelet."""
    room = {"cpu": "256", "memory": "2Ti", "pods": "110", "nvidia.com/gpu": str(num_gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": {"taints": list(taints)},
        "status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "as the test says"}],
        },
    }


def definitions_in(manifests: Path) -> list[Any]:
    """Of the kinds that an operator's manifests bring. Nothing converts them: only stored versions can be asked for."""
    found = [content for content in yaml.safe_load_all(manifests.read_text()) if content]
    kinds = [content for content in found if content["kind"] == "CustomResourceDefinition"]
    for content in kinds:
        content["spec"].pop("conversion", None)
        content.pop("status", None)
    return kinds


def _kubeconfig(server: str, certificate: Path) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(certificate)}}],
        "users": [{"name": "test", "user": {"token": _TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


@contextmanager
def running_program(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """It runs while the context is open."""
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(what: str, look: Callable[[], _Found | None]) -> _Found:
    deadline = time.monotonic() + _DEADLINE_S
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"{what} did not come within {_DEADLINE_S:.0f} s"
        time.sleep(0.2)
    return found
