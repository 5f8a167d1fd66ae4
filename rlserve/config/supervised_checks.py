"""Checks of what belongs to one kind of run alone: those that generate, and those that learn from a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlserve.config.dump import as_plain
from rlserve.config.keys import flatten
from rlserve.config.tree import EvaluationConfig, RunConfig
from rlserve.config.wording import show
from rlserve.errors import Problem
from rlserve.pool.config import PoolConfig
from rlserve.rollout.config import DataConfig, RewardConfig, RolloutConfig
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.trainers.backends.config import TrainerConfig
from rlserve.weights.config import ObjectStoreConfig

_OF_GENERATING: Mapping[str, Any] = {
    "data": DataConfig(path=""),
    "reward": RewardConfig(),
    "environment": EnvironmentConfig(),
    "rollout": RolloutConfig(),
    "pool": PoolConfig(),
    "weights": ObjectStoreConfig(),
    "evaluation": EvaluationConfig(),
}
"""Parts that have keys without any effect where nothing is generated, with their defaults ..."""
_SOME = {
    "data": ("max_prompt_tokens",),
    "pool": ("placement", "num_initial_rollout"),
    "evaluation": ("temperature", "success_threshold"),
}
"""... and those keys, where not all of them are."""
_COLUMNS = {
    "completion_field": ("sft",),
    "messages_field": ("sft",),
    "chosen_field": ("reward_model",),
    "rejected_field": ("reward_model",),
    "margin_field": ("reward_model",),
    "max_length": ("sft", "reward_model"),
}
"""Keys of ``data`` and the algorithms that they are for."""

_INSTEAD = dict.fromkeys(
    ("backend", "sharding"), "no other trains a model that scores; for a large one train adapters (trainer.lora.rank)"
)
"""What else can be done where a key is refused."""


def check_supervised(config: RunConfig) -> Iterator[Problem]:
    """What is set although nothing is generated."""
    name = config.algorithm.name
    for part, default in _OF_GENERATING.items():
        before = dict(flatten(as_plain(default)))
        for key, value in flatten(as_plain(getattr(config, part))):
            is_unused = part not in _SOME or key in _SOME[part]
            if is_unused and value != before.get(key):
                message = f"has no effect with algorithm.name={name}, which generates nothing: leave it out"
                yield Problem(f"{part}.{key}", f"{message}, got {show(value)}")
    if config.algorithm.needs.scores:
        yield from _check_scores(config.trainer, name)
    if config.pool.keeps_slots_from_training:
        message = f"must be true on spot machines with algorithm.name={name}, where all slots train"
        yield Problem("pool.train_on_spot", message)
    if config.pool.is_paced:
        yield Problem("pool.slots", f"slots that stand for others (paced) are not for algorithm.name={name}")


def check_data_columns(config: RunConfig) -> Iterator[Problem]:
    """Columns that are named and not read."""
    name, default = config.algorithm.name, DataConfig(path="")
    for key, algorithms in _COLUMNS.items():
        value = getattr(config.data, key)
        if name not in algorithms and value != getattr(default, key):
            message = f"has no effect with algorithm.name={name}: it is for algorithm.name={' or '.join(algorithms)}"
            yield Problem(f"data.{key}", f"{message}, got {show(value)}")


def _check_scores(trainer: TrainerConfig, name: str) -> Iterator[Problem]:
    """One backend alone knows a model that scores, and one way to hold its state."""
    wanted: dict[str, Any] = {"backend": "torch", "sharding": "optimizer", "deterministic": False}
    for key, value in wanted.items():
        if (found := getattr(trainer, key, value)) != value:
            message = f"must be {show(value)} with algorithm.name={name}, got {show(found)}"
            yield Problem(f"trainer.{key}", f"{message}; {_INSTEAD[key]}" if key in _INSTEAD else message)
