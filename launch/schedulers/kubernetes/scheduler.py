"""A run as a job of Kubernetes, by the operator KubeRay.

::

    RayJob ──Kueue admits──► Ray cluster ──► rlserve launch --continue ──► Complete: the cluster is removed
                                 ▲  ▲                 └── exit code ≠ 0: a new cluster, launch.kubernetes.max_restarts×
        the run's scale_out ──► Ray's autoscaler: more pods of a group, and fewer
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from rlserve.config import RunConfig, to_yaml
from rlserve.errors import UserError
from rlserve.launch.schedulers.base import JobState, Scheduler
from rlserve.launch.schedulers.kubernetes.worker_groups import worker_groups
from rlserve.launch.schedulers.plan import JobPlan, NodeGroup, with_prices_in
from rlserve.launch.schedulers.programs import ask, pass_on
from rlserve.launch.schedulers.templates import render_templates
from rlserve.pool.config import CLOUD_PROBES
from rlserve.serving.config import LOOPBACK_HOSTS
from rlserve.tracking.job_record import JobRecord

PRODUCTS = {
    "A100": ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"),
    "A100-40G": ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
    "H100": ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
    "H200": ("NVIDIA-H200", "NVIDIA-H200-NVL"),
    "T4": ("Tesla-T4",),
    "V100": ("Tesla-V100-SXM2-32GB", "Tesla-V100-SXM2-16GB", "Tesla-V100-PCIE-32GB"),
}
"""Names that NVIDIA's GPU feature discovery labels machines with, where they are more than ``NVIDIA-`` and the type."""


class KubernetesScheduler(Scheduler):
    """By kubectl, with whatever cluster it is set up for."""

    name = "kubernetes"

    def render(self, plan: JobPlan) -> Mapping[str, str]:
        kubernetes = plan.launch.kubernetes
        if plan.launch.image is None:
            raise UserError("launch.image must name a container image with rlserve in it")
        if kubernetes.claim is None:
            raise UserError("launch.kubernetes.claim must name the PersistentVolumeClaim that runs are kept on")
        if plan.launch.env_file is not None:
            raise UserError(
                "launch.env_file is no file of a pod: make a secret of it (kubectl create secret generic NAME "
                f"--from-env-file={plan.launch.env_file}) and say launch.kubernetes.secret=NAME"
            )
        key, _, value = kubernetes.spot_label.partition("=")
        groups = worker_groups(plan.config)
        config = with_metrics_served(replace(plan.config, output_dir=kubernetes.mount_point))
        rendered = render_templates(
            Path(__file__).parent,
            plan,
            run_file=to_yaml(with_prices_in(config, "/etc/rlserve")),
            run_folder=f"{kubernetes.mount_point}/{plan.name}",
            ray_version=version("ray"),
            groups=groups,
            grows=plan.config.scale_out.is_enabled,
            products={group.nodes.name: products_of(group.nodes) for group in groups},
            spot_key=key,
            spot_value=value,
            cloud_probes=CLOUD_PROBES,
            num_fixed_nodes=sum(group.nodes.num_nodes for group in groups if not group.nodes.is_spot),
            memory=lambda nodes: _times(kubernetes.memory_per_slot, nodes.slots_per_node),
        )
        return {name: text for name, text in rendered.items() if text.strip()}

    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        return ("kubectl", "apply", "--filename", str(folder))

    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        command = self.submit_command(plan, folder)
        ask(*command, "--dry-run=server")
        namespace = plan.launch.kubernetes.namespace
        # A job that has ended does not begin again by being applied; its files stay on the volume.
        ask("kubectl", "--namespace", namespace, "delete", "rayjob", plan.job_name, "--ignore-not-found")
        ask(*command)
        return JobRecord(scheduler=self.name, id=plan.job_name, place=namespace)

    def state(self, job: JobRecord) -> JobState | None:
        found = ask(*_kubectl(job), "get", "rayjob", job.id, "--ignore-not-found", "--output=json")
        return read_state(found) if found.strip() else None

    def print_logs(self, job: JobRecord, *, follow: bool) -> int:
        which = f"rlserve/run={job.id},rlserve/part=head"
        options = ["--all-containers", "--prefix", "--tail=-1", *(["--follow"] if follow else [])]
        return pass_on([*_kubectl(job), "logs", f"--selector={which}", *options])

    def cancel(self, job: JobRecord) -> None:
        kinds = "rayjob,configmap,poddisruptionbudget,networkpolicy,service"
        ask(*_kubectl(job), "delete", kinds, f"--selector=rlserve/run={job.id}", "--wait=false")


def with_metrics_served(config: RunConfig) -> RunConfig:
    """The configuration for pods: where the run has metrics for Prometheus, they can be reached from other pods.

    Raises:
        UserError: on a port that nobody knows beforehand.
    """
    tracking = config.tracking
    if tracking.prometheus_port is None:
        return config
    if tracking.prometheus_port == 0:
        raise UserError("tracking.prometheus_port must be the number of a port on Kubernetes, 9400 for instance, got 0")
    host = "0.0.0.0" if tracking.prometheus_host in LOOPBACK_HOSTS else tracking.prometheus_host
    return replace(config, tracking=replace(tracking, prometheus_host=host))


def products_of(group: NodeGroup) -> tuple[str, ...]:
    """What its GPUs may be called."""
    return PRODUCTS.get(group.accelerator, (f"NVIDIA-{group.accelerator}",))


def read_state(found: str) -> JobState:
    """From a RayJob as JSON."""
    content = json.loads(found)
    status = content.get("status", {})
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    detail = " ".join(part for part in (deployment, job, status.get("message", "")) if part)
    if deployment in ("Complete", "Failed", "ValidationFailed"):
        return JobState(stage="ended", detail=detail)
    if content.get("spec", {}).get("suspend"):
        return JobState(stage="waiting", detail=detail or "suspended: its queue has not admitted it")
    is_running = job == "RUNNING"
    return JobState(stage="running" if is_running else "waiting", detail=detail or "not seen by KubeRay yet")


def _kubectl(job: JobRecord) -> tuple[str, ...]:
    return ("kubectl", "--namespace", job.place)


def _times(quantity: str, number: int) -> str:
    """``64Gi`` times 8 is ``512Gi``."""
    unit = quantity.lstrip("0123456789")
    return f"{int(quantity.removesuffix(unit)) * number}{unit}"
