"""Plain builders for the tests of the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlserve.engine.config import EngineConfig
from rlserve.pool.base import WorkerSpec
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.pool.roles.train import TrainRole
from rlserve.trainers.algorithms.config import PPOConfig
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.weights.config import ObjectStoreConfig
from rlserve.weights.contents.base import Contents
from rlserve.weights.contents.factory import create_contents


def make_spec(slot_id: str, **changes: Any) -> WorkerSpec:
    """What the worker of a CPU slot is told."""
    parts: dict[str, Any] = {
        "device": "cpu",
        "num_threads": 1,
        "model_path": "model",
        "seed": 0,
        "temperature": 1.0,
        "engine": EngineConfig(),
        "trainer": TorchTrainerConfig(),
        "algorithm": PPOConfig(),
        "weights": ObjectStoreConfig(),
        "switch_timeout_s": 20.0,
        "log_path": Path("log"),
    }
    return WorkerSpec(slot_id=slot_id, **(parts | changes))


def contents_of(spec: WorkerSpec) -> Contents:
    """What its versions consist of."""
    return create_contents(spec.trainer.lora, spec.model_path, getattr(torch, spec.engine.dtype))


def train_role(spec: WorkerSpec) -> TrainRole:
    """Its train role, as the worker makes it."""
    return TrainRole(spec, Unpaced(), contents_of(spec))
