"""The whole configuration of a run: the parts' own configurations, composed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Discriminator

from rlserve.errors import check_fields
from rlserve.launch.config import LaunchConfig
from rlserve.manager.config import ManagerConfig, RateMatchingConfig, StaticConfig
from rlserve.manager.scale_out.config import ScaleOutConfig
from rlserve.pool.config import PoolConfig
from rlserve.rollout.config import DataConfig, RewardConfig, RolloutConfig
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.tracking.config import TrackingConfig
from rlserve.tracking.cost.config import CostConfig
from rlserve.trainers.algorithms.config import AlgorithmConfig, PPOConfig
from rlserve.trainers.backends.config import TorchTrainerConfig, TrainerConfig
from rlserve.weights.config import ObjectStoreConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy that is trained."""

    path: str
    """A Hugging Face folder or hub name, or ``builtin:NAME`` for a small one that rlserve makes itself."""
    tokenizer_path: str | None = None
    """None takes the tokenizer beside the model."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scoring the policy on held-out prompts."""

    every_steps: int = 0
    """Also score in mid-run every so many steps; 0 scores only before the first and after the last."""
    temperature: float = 0.0
    """0 is greedy."""
    success_threshold: float = 1.0
    """Reward from which an answer counts as right: the score is the share of right answers."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "every_steps": self.every_steps >= 0 or "must be at least 0",
                "temperature": self.temperature >= 0 or "must be at least 0",
            },
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving the run."""

    every_steps: int = 0
    """Save every so many steps; 0 saves only at the end and on Ctrl-C."""
    keep: int = 2
    """Checkpoints that stay; the oldest go first."""
    keep_best: int = 0
    """So many stay beside those, the ones with the best held-out scores. A checkpoint has a score where one is taken
    after its step (``evaluation.every_steps``)."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "every_steps": self.every_steps >= 0 or "must be at least 0",
                "keep": self.keep >= 1 or "must be at least 1",
                "keep_best": self.keep_best >= 0 or "must be at least 0",
            },
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made of."""

    model: ModelConfig
    data: DataConfig
    reward: RewardConfig = field(default_factory=RewardConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    name: str | None = None
    """Folder of the run under ``output_dir``; None takes the configuration's name and the time, numbered if need be."""
    output_dir: str = "runs"
    """Folder that runs are kept in."""
    seed: int = 0
    """Decides the order of prompts and of mini-batches, the random numbers of sampling, and the critic's head."""
    num_steps: int = 100
    """Training steps."""
    algorithm: Annotated[AlgorithmConfig, Discriminator("name")] = field(default_factory=PPOConfig)
    trainer: Annotated[TrainerConfig, Discriminator("backend")] = field(default_factory=TorchTrainerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    manager: Annotated[ManagerConfig, Discriminator("policy")] = field(default_factory=RateMatchingConfig)
    scale_out: ScaleOutConfig = field(default_factory=ScaleOutConfig)
    weights: Annotated[WeightsConfig, Discriminator("transport")] = field(default_factory=ObjectStoreConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    @property
    def deciding(self) -> ManagerConfig:
        """The manager's configuration that holds: where nothing moves, that of the static policy."""
        moves = self.pool.placement == "elastic" and self.algorithm.needs.rollouts
        if moves or self.manager.policy == "static":
            return self.manager
        return StaticConfig(interval_s=self.manager.interval_s)

    @property
    def num_answers_per_prompt(self) -> int:
        """That are generated: those that are trained on, and a greedy one where the algorithm compares with it."""
        return self.rollout.samples_per_prompt + self.algorithm.needs.greedy_answer

    @property
    def scheduled_trainer(self) -> TrainerConfig:
        """The trainer's configuration that holds: learning rates that fall do so over the whole run, unless said."""
        if self.trainer.num_schedule_steps is not None:
            return self.trainer
        num_updates = self.num_steps * self.algorithm.num_epochs * self.algorithm.num_mini_batches
        return replace(self.trainer, num_schedule_steps=num_updates)

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "num_steps": self.num_steps >= 1 or "must be at least 1",
                "seed": self.seed >= 0 or "must be at least 0",
                "name": self.name is None
                or (self.name.strip() not in ("", ".", "..", "latest") and "/" not in self.name)
                or "must be a plain folder name",
            },
        )
