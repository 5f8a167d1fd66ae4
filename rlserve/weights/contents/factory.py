"""What versions of a run consist of."""

from __future__ import annotations

from pathlib import Path

import torch

from rlserve.trainers.backends.config import LoraConfig
from rlserve.weights.contents.adapters import Adapters
from rlserve.weights.contents.base import Contents
from rlserve.weights.contents.whole_model import WholeModel


def create_contents(lora: LoraConfig, model_path: str, engine_dtype: torch.dtype) -> Contents:
    """Adapters of the model in ``model_path`` where adapters are trained, else the whole model."""
    if lora.is_on:
        return Adapters(Path(model_path), scale=lora.scale, engine_dtype=engine_dtype)
    return WholeModel(engine_dtype)
