"""The sizes of a model that costs follow from: named ones, and that of any dense decoder by its ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlserve.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A dense decoder with grouped-query attention, in bf16."""

    name: str
    num_parameters: float
    """All of them, embedding and head included."""
    num_layers: int
    num_kv_heads: int
    head_dim: int
    bytes_per_value: int = 2
    """Of weights and of the KV cache."""

    @property
    def weight_bytes(self) -> float:
        """Of the whole model."""
        return self.num_parameters * self.bytes_per_value

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token in all layers."""
        return 2.0 * self.num_layers * self.num_kv_heads * self.head_dim * self.bytes_per_value


def _shape(name: str, billions: float, num_layers: int) -> ModelShape:
    return ModelShape(name=name, num_parameters=billions * 1e9, num_layers=num_layers, num_kv_heads=8, head_dim=128)


MODEL_SHAPES = {
    shape.name: shape
    for shape in (
        # Qwen3's, and Llama 3's for 70B; all have 8 heads of keys and values of 128 numbers.
        _shape("0.6B", 0.60, 28),
        _shape("1.7B", 1.72, 28),
        _shape("4B", 4.02, 36),
        _shape("8B", 8.19, 36),
        _shape("14B", 14.8, 40),
        _shape("32B", 32.8, 64),
        _shape("70B", 70.6, 80),
    )
}


def model_shape(name: str) -> ModelShape:
    """The shape of a named size.

    Raises:
        UserError: no such name.
    """
    if name not in MODEL_SHAPES:
        raise UserError(
            f"no model size is called {name!r}, and no folder has such a model: there are {', '.join(MODEL_SHAPES)}"
        )
    return MODEL_SHAPES[name]


def read_shape(model: str) -> ModelShape:
    """The shape of a named size, or of the model in a folder.

    Raises:
        UserError: it is neither, or the model is not one that is modelled.
    """
    file = Path(model) / "config.json"
    if model in MODEL_SHAPES or not file.is_file():
        return model_shape(model)
    return shape_of_config(model, json.loads(file.read_text(encoding="utf-8")))


def shape_of_config(name: str, config: Mapping[str, Any]) -> ModelShape:
    """The shape of a model by its Hugging Face ``config.json``: the matrices of a Llama-like decoder, to which biases
    and norms add less than a thousandth.

    Raises:
        UserError: a number is missing, or it is a mixture of experts, whose reads depend on the batch.
    """
    if config.get("num_experts") or config.get("num_local_experts"):
        raise UserError(f"{name} is a mixture of experts, whose costs are not modelled: name a dense size")
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    missing = [key for key in names if key not in config]
    if missing:
        raise UserError(f"the configuration of {name} has no {' and no '.join(missing)}")
    hidden, intermediate, num_heads, num_layers, vocab = (int(config[key]) for key in names)
    num_kv_heads = int(config.get("num_key_value_heads") or num_heads)
    head_dim = int(config.get("head_dim") or hidden // num_heads)
    attention = hidden * head_dim * (2 * num_heads + 2 * num_kv_heads)
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return ModelShape(
        name=name,
        num_parameters=float(embeddings + num_layers * (attention + 3 * hidden * intermediate)),
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )
