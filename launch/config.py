"""Configuration of the launchers and of the schedulers. Plain data: imports nothing of rlserve but its errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What ``rlserve submit --to slurm`` asks of Slurm."""

    partition: str | None = None
    """None leaves the choice to Slurm, as with every key of this part that may be null."""
    account: str | None = None
    """Whom the job is charged to."""
    qos: str | None = None
    """Quality of service."""
    time_limit: str | None = None
    """As sbatch reads it: ``2-00:00:00``."""
    warning_s: int = 180
    """How long before the time limit the run is told to save, after which it is queued again."""
    memory: str | None = None
    """Of a node: ``512G``, or ``0`` for all that it has."""
    max_requeues: int = 20
    """How often a run that was interrupted is queued again."""
    max_running: int | None = None
    """How many runs of a sweep may run at once; null leaves that to Slurm."""
    options: tuple[str, ...] = ()
    """Further options of sbatch: ``[--exclusive, --constraint=ib]``."""
    container: Literal["none", "apptainer", "enroot"] = "none"
    """What ``launch.image`` is run by; ``enroot`` is by the plugin pyxis."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "warning_s": self.warning_s >= 1 or "must be at least 1",
                "max_requeues": self.max_requeues >= 0 or "must be at least 0",
                "max_running": self.max_running is None or self.max_running >= 1 or "must be at least 1",
                "options": all(option.startswith("-") for option in self.options) or "must begin with a dash",
            },
        )


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig:
    """What ``rlserve submit --to kubernetes`` asks of a cluster with the operator KubeRay."""

    namespace: str = "default"
    """Of everything that is made."""
    queue: str | None = None
    """Kueue's local queue, which admits all pods of the run at once; None asks no queue."""
    claim: str | None = None
    """PersistentVolumeClaim, writable from every pod, that runs are kept on."""
    mount_point: str = "/runs"
    """Where pods see it; it is the run's ``output_dir`` there."""
    secret: str | None = None
    """Secret whose entries are environment variables of every pod: ``WANDB_API_KEY``, ``HF_TOKEN``."""
    spot_label: str = "karpenter.sh/capacity-type=spot"
    """Label and taint of spot machines, where slots of a type like ``H100-spot`` are: on GKE
    ``cloud.google.com/gke-spot=true``."""
    gpu_label: str = "nvidia.com/gpu.product"
    """Label of a node that names its type of GPU."""
    memory_per_slot: str = "64Gi"
    """Requested for each slot of a pod."""
    shared_memory: str = "16Gi"
    """Of ``/dev/shm`` in every pod."""
    egress_ports: tuple[int, ...] = (443,)
    """Ports of anybody that the run's pods may speak to, beside each other and the cluster's names: trackers, hubs and
    rewards that are asked by URL. What else a network policy of the cluster allows stays allowed."""
    head_grace_s: int = 300
    """Time that the run has to save when the head is evicted."""
    worker_grace_s: int = 25
    """Time that its slots have to be emptied when another pod is evicted; of most spot machines 30 s are left."""
    idle_s: int = 60
    """How long a pod that ``scale_out`` asked for stays once the run has emptied it."""
    max_restarts: int = 20
    """How often a run that was interrupted is begun again, on a new Ray cluster."""
    keep_s: int = 3600
    """How long an ended job stays."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "spot_label": all(self.spot_label.partition("=")) or "must be LABEL=VALUE",
                "mount_point": self.mount_point.startswith("/") or "must be absolute",
                "egress_ports": all(0 < port < 65536 for port in self.egress_ports) or "must be ports",
                "head_grace_s": self.head_grace_s >= 1 or "must be at least 1",
                "worker_grace_s": self.worker_grace_s >= 1 or "must be at least 1",
                "idle_s": self.idle_s >= 1 or "must be at least 1",
                "max_restarts": self.max_restarts >= 0 or "must be at least 0",
                "keep_s": self.keep_s >= 0 or "must be at least 0",
            },
        )


@dataclass(frozen=True, kw_only=True)
class RayJobConfig:
    """What ``rlserve submit --to ray`` asks of a Ray cluster that is there already."""

    address: str | None = None
    """Of the job server, ``http://HEAD:8265``; None takes RAY_API_SERVER_ADDRESS."""
    python: str = "python3"
    """Interpreter of the cluster's machines that has rlserve."""
    stop_wait_s: int = 300
    """Time that a run has to save when its job is stopped."""

    def __post_init__(self) -> None:
        check_fields(self, {"stop_wait_s": self.stop_wait_s >= 1 or "must be at least 1"})


@dataclass(frozen=True, kw_only=True)
class SkyPilotConfig:
    """What ``rlserve submit --to skypilot`` asks of SkyPilot."""

    bucket: str | None = None
    """Bucket that runs are kept on, as SkyPilot names it: ``s3://my-runs``; for runs that train on one machine."""
    volume: str | None = None
    """Volume of SkyPilot that runs are kept on instead, writable from every machine."""
    mount_point: str = "/runs"
    """Where machines see it; it is the run's ``output_dir`` there."""
    infra: tuple[str, ...] = ()
    """Where machines may be: ``[aws/us-east-1, gcp]``; empty leaves it to SkyPilot."""
    rollout_types: tuple[str, ...] = ()
    """Types of GPU that machines for rollout (those on spot, and those that prefer it) may have instead of their own.
    The run's pool is then ``auto``, and ``pool.auto_prefer`` keeps what its groups prefer."""

    def __post_init__(self) -> None:
        check_fields(self, {"mount_point": self.mount_point.startswith("/") or "must be absolute"})


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Where the run's worker processes live."""

    kind: Literal["local", "cluster"] = "local"
    """``local`` embeds Ray in this process; ``cluster`` joins a running Ray cluster. ``rlserve submit`` sets it."""
    address: str | None = None
    """Of the cluster, as for ``ray.init``; None with ``cluster`` takes RAY_ADDRESS or the cluster of this machine."""
    wait_s: float = 0.0
    """How long a cluster has to answer, and to have the slots that ``pool.slots`` asks for."""
    gpus_per_node: int = 8
    """Of the cluster's machines: ``rlserve submit`` asks for as many machines as the slots of each type need."""
    cpus_per_gpu: int = 8
    """CPU cores that are asked for beside each GPU."""
    image: str | None = None
    """Container image with rlserve in it; None runs from the Python environment of ``rlserve submit``, which all
    machines must see."""
    env_file: str | None = None
    """File of secrets that jobs read and that is copied nowhere, ``NAME=value`` a line."""
    templates: str | None = None
    """Folder whose files are rendered in place of those of the same name in ``launch/schedulers/``."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    ray: RayJobConfig = field(default_factory=RayJobConfig)
    skypilot: SkyPilotConfig = field(default_factory=SkyPilotConfig)

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "wait_s": self.wait_s >= 0 or "must be at least 0",
                "gpus_per_node": self.gpus_per_node >= 1 or "must be at least 1",
                "cpus_per_gpu": self.cpus_per_gpu >= 1 or "must be at least 1",
            },
        )
