"""What the engine must know of a model, read from ``config.json``. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlserve.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Frequency scaling of Llama 3 (rope type ``llama3``): long wavelengths are stretched by ``factor``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape and switches of one pre-norm decoder with rotary positions, grouped queries and a SwiGLU MLP."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position: int
    """Longest sequence the model was made for, in tokens."""
    tied_embeddings: bool
    """The output head is the embedding matrix."""
    eos_token_ids: tuple[int, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    """RMSNorm over each head of queries and keys before the rotation (Qwen3)."""

    @property
    def query_size(self) -> int:
        """Columns of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim


class ConfigFile:
    """``config.json`` with typed access: every complaint is a :class:`ModelError` that names file and key."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self._content = content

    def integer(self, key: str, default: int | None = None) -> int:
        """The whole number under ``key``, at least 1."""
        value = self._content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{key} must be a whole number of at least 1, got {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """The number under ``key``, greater than 0."""
        return self._positive(key, self._content.get(key), default)

    def flag(self, key: str, default: bool) -> bool:
        """The true or false under ``key``."""
        value = self._content.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, got {value!r}")
        return value

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse a model whose ``key`` is set to something that the engine does not compute."""
        value = self._content.get(key)
        if value is not None and value not in allowed:
            raise self.error(f"{key}={value!r} is not supported, only {' or '.join(map(repr, allowed))}")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id, a list of them, or none."""
        value = self._content.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and token >= 0 for token in ids):
            raise self.error(f"{key} must be a token id or a list of them, got {value!r}")
        return tuple(ids)

    def rope(self, default_theta: float = 10_000.0) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the rotary positions: transformers 5 ``rope_parameters``, or the older two keys."""
        parameters = self._content.get("rope_parameters") or self._content.get("rope_scaling") or {}
        if not isinstance(parameters, dict):
            raise self.error(f"rope_parameters must be a table, got {parameters!r}")
        theta = parameters.get("rope_theta", self._content.get("rope_theta"))
        base = self._positive("rope_theta", theta, default_theta)
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind == "default":
            return base, None
        if kind != "llama3":
            raise self.error(f"rope type {kind!r} is not supported, only 'default' and 'llama3'")
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        factor, low, high, original = (self._positive(key, parameters.get(key), None) for key in keys)
        return base, RopeScaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=int(original)
        )

    def error(self, message: str) -> ModelError:
        """The complaint, with the file in front."""
        return ModelError(f"{self.path}: {message}")

    def _positive(self, key: str, value: Any, default: float | None) -> float:
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(f"{key} must be a number greater than 0, got {value!r}")
        return float(value)
