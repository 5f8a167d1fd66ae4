"""What crosses the border between the controller and a worker process. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlserve.engine.config import EngineConfig
from rlserve.engine.requests.delta import RequestDelta
from rlserve.engine.requests.request import RequestOutput
from rlserve.engine.stats.metrics import Value
from rlserve.json_log import LogFormat
from rlserve.pool.notices.base import Notice
from rlserve.pool.pacing.base import Pacing
from rlserve.trainers import Traffic
from rlserve.trainers.algorithms.config import AlgorithmConfig
from rlserve.trainers.backends.config import TrainerConfig
from rlserve.weights.canary import CanaryPrompts, CanaryScores
from rlserve.weights.config import WeightsConfig

POLICY_FOLDER = "policy"
"""Of a checkpoint: the policy as a Hugging Face folder."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """Everything that a worker process needs for either role."""

    slot_id: str
    device: Literal["cpu", "cuda"]
    num_threads: int
    model_path: str
    seed: int
    temperature: float
    """That the samples are drawn at; the trainer trains the policy at this temperature."""
    engine: EngineConfig
    trainer: TrainerConfig
    algorithm: AlgorithmConfig
    weights: WeightsConfig
    """With the folder that this run sends through, if its transport has one."""
    canary: CanaryPrompts = ()
    """That trainer and replica must agree on."""
    switch_timeout_s: float
    """How long the ranks of one engine wait for each other."""
    log_path: Path
    log_format: LogFormat = "text"
    offloads_trainer: bool = False
    """Whether a trainer that sleeps leaves the GPU (``pool.colocated.offload_trainer``)."""
    engine_memory_share: float | None = None
    """Share of the GPU's memory, or of the machine's, that weights and KV cache of the engine may take beside a trainer
    that sleeps (``pool.colocated.rollout_memory_share``); None leaves the size of the cache to ``engine``."""
    notice_probe: str | None = None
    """What is asked whether the machine will be taken away (``pool.notice_probe``)."""
    pacing: Pacing | None = None
    """The accelerator that it stands for; None: it is what it is."""
    incarnation: int = 0
    """Counts the processes that this slot has had."""


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What a worker tells about itself once it is up."""

    slot_id: str
    process_id: int
    host: str


@dataclass(frozen=True, kw_only=True)
class SignOfLife:
    """What a worker says whenever it is asked whether it lives."""

    is_computing: bool = False
    """It is in the middle of a step of its engine, or of its own part of a training step, and waits for nobody."""
    notice: Notice | None = None
    """That its slot will be taken away."""


@dataclass(frozen=True, kw_only=True)
class MemoryChange:
    """What a worker held of its device's memory before and after it gave something back. Of a CPU slot it is all that
    its process has in memory; of a GPU, what its process has taken from it."""

    before_bytes: int
    after_bytes: int

    @property
    def released_bytes(self) -> int:
        """What is free for others now."""
        return self.before_bytes - self.after_bytes


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What a trainer says that has taken its place in a group."""

    num_steps: int
    """That have been completed."""
    traffic: Traffic = field(default_factory=Traffic)
    """Of all ranks."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What a trainer copies between two steps, for what goes on beside the next one."""

    version: int | None = None
    """It copies what it has of the weights, to be sent as this version; None: it does not."""
    state: bool = False
    """It copies what it writes of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What came of it."""

    canary: CanaryScores = ()
    """What the weights make of the canary, where their version has one."""
    weights_s: float = 0.0
    """That copying the weights and scoring the canary took."""
    state_s: float = 0.0
    """That copying the state took."""


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """What a trainer says that has stepped, and copied what it was asked to."""

    metrics: Mapping[str, float]
    copied: Copied = field(default_factory=Copied)


@dataclass(frozen=True, kw_only=True)
class RolloutStats:
    """Numbers of one replica's engine."""

    weight_version: int
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    num_generated_tokens: int
    """Since the replica began."""
    num_preemptions: int
    prefix_cache_hit_rate: float
    num_steps: int
    """Progress counter: a watchdog takes a replica with work and no progress for wedged."""
    busy_s: float = 0.0
    """Seconds that the engine has computed since it took the role; the rest it waited for work."""
    recompute_s: float = 0.0
    """Of that, for keys and values that had been there before, here or in another replica."""
    running_s: float = 0.0
    """Integral of ``num_running`` over ``busy_s``: divided by it, the mean batch of a step."""
    first_token_ago_s: float | None = None
    """Since the first token that it made in this role; None before."""
    longest_gap_s: float = 0.0
    """Longest time between the ends of two steps, of those that ended since the numbers were told last; without the
    time in which there was no work."""
    engine_metrics: Mapping[str, Value] = field(default_factory=dict)
    """All numbers of the engine, by vLLM's names."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Answer to one long poll for the new tokens of streamed requests."""

    deltas: tuple[RequestDelta, ...]
    closed: bool
    """The worker has given the rollout role up: no more will come."""


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """A trace of an engine's steps that was written."""

    num_steps: int
    num_bytes: int
    """Of the file."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Answer to one long poll of a replica."""

    outputs: tuple[RequestOutput, ...]
    stats: RolloutStats
    closed: bool
    """The worker has given the rollout role up: no more outputs will come."""
