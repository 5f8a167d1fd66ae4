"""Configuration of the weight transport. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """A few prompts of the data whose log-probabilities are compared between trainer and replica when a replica has
    taken a version. One that differs takes the weights anew, and is replaced if it still differs."""

    num_prompts: int = 4
    """How many, of 16 tokens each; 0 compares nothing."""
    every: int = 1
    """One version of so many is compared."""
    tolerance: float | None = None
    """Largest mean difference over the tokens of a prompt, in nats. None takes 0.001 where engine and trainer compute
    in float32, and 0.5 where one of them rounds: ten times what sound ones were seen to differ by, or more."""

    def is_due(self, version: int) -> bool:
        """Whether a version is compared."""
        return self.num_prompts > 0 and version % self.every == 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "num_prompts": self.num_prompts >= 0 or "must be at least 0",
                "every": self.every >= 1 or "must be at least 1",
                "tolerance": self.tolerance is None or self.tolerance > 0 or "must be above 0",
            },
        )


@dataclass(frozen=True, kw_only=True)
class ObjectStoreConfig:
    """Weights go from the trainers into the engines through Ray's object store."""

    transport: Literal["object_store"] = "object_store"
    """How new weights get from the trainers into the engines."""
    timeout_s: float = 120.0
    """Deadline of a trainer sending a version, and of a replica taking it."""
    anchor_every: int = 10
    """One version of so many is sent whole, the others as what changed, where that pays. 1 sends all whole."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class SharedFolderConfig:
    """Weights go from the trainers into the engines as files in a folder that all nodes see."""

    transport: Literal["shared_folder"] = "shared_folder"
    """How new weights get from the trainers into the engines."""
    folder: str = ""
    """The folder, in which the run makes its own; empty takes the run's folder. One in memory is fastest."""
    timeout_s: float = 120.0
    """Deadline of a trainer sending a version, and of a replica taking it."""
    anchor_every: int = 10
    """One version of so many is sent whole, the others as what changed, where that pays. 1 sends all whole."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class NcclConfig:
    """Weights go from a trainer to all replicas that want them at once, by NCCL between GPUs."""

    transport: Literal["nccl"] = "nccl"
    """How new weights get from the trainers into the engines."""
    backend: Literal["nccl", "gloo"] = "nccl"
    """``gloo`` does the same between CPUs."""
    host: str = ""
    """Address by which other machines reach a trainer's; empty finds it, and is this machine alone for a run on one."""
    gather_s: float = 0.2
    """How long the first replica that asks for a version waits for others, unless all of the last time are there."""
    peer_timeout_s: float = 10.0
    """How long all wait for one of them, to come and in each part of a broadcast; the others go on without it."""
    timeout_s: float = 120.0
    """Deadline of a trainer sending a version, and of a replica taking it."""
    anchor_every: int = 10
    """One version of so many is sent whole, the others as what changed, where that pays. 1 sends all whole."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)

    def __post_init__(self) -> None:
        _check(self)
        check_fields(
            self,
            {
                "gather_s": self.gather_s >= 0 or "must be at least 0",
                "peer_timeout_s": 0 < self.peer_timeout_s < self.timeout_s
                or f"must be above 0 and below weights.timeout_s={self.timeout_s:g}",
            },
        )


@dataclass(frozen=True, kw_only=True)
class CudaIpcConfig:
    """Weights go from a trainer's GPU into those of replicas on the same machine, from memory to memory, by CUDA IPC.
    They travel whole. A trainer's GPU holds one or two copies of them in the engines' type, that of a replica one
    beside its engine, for which ``rollout.engine.gpu_memory_fraction`` must leave room."""

    transport: Literal["cuda_ipc"] = "cuda_ipc"
    """How new weights get from the trainers into the engines."""
    timeout_s: float = 120.0
    """Deadline of a trainer sending a version, and of a replica taking it."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)

    @property
    def anchor_every(self) -> int:
        """All versions are sent whole: bytes are cheap within a machine, and both ends would keep the last one."""
        return 1

    def __post_init__(self) -> None:
        _check(self)


WeightsConfig = ObjectStoreConfig | SharedFolderConfig | NcclConfig | CudaIpcConfig
"""One of them, by ``transport``."""


def sends_deltas(config: WeightsConfig) -> bool:
    """Whether a version may travel as what changed: then both ends keep the last one."""
    return config.anchor_every > 1


def _check(config: WeightsConfig) -> None:
    check_fields(
        config,
        {
            "timeout_s": config.timeout_s > 0 or "must be above 0",
            "anchor_every": config.anchor_every >= 1 or "must be at least 1",
        },
    )
