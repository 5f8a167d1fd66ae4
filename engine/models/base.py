"""What the engine must know of a model, read from ``config.json``. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlserve.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Rope type ``linear``: every frequency is divided by ``factor``."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Rope type ``llama3``: long wavelengths are stretched by ``factor``, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Rope type ``yarn`` (arXiv 2309.00071): slow dimensions are stretched by ``factor``, fast ones kept, and
    cosines and sines are multiplied by ``attention_factor``."""

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_max_position: int
    truncate: bool
    """Whether the bounds between fast and slow dimensions are rounded to whole dimensions."""


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """Rope type ``longrope`` (arXiv 2402.13753): each dimension has a factor of its own, one for sequences up to the
    original length and one for longer ones, and cosines and sines are multiplied by ``attention_factor``."""

    short_factors: tuple[float, ...]
    """Of each frequency."""
    long_factors: tuple[float, ...]
    attention_factor: float
    original_max_position: int


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling

Activation = Literal["silu", "gelu", "gelu_tanh"]
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}
"""By the names in transformers, of which many are the same function."""


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec:
    """Mixture of experts: in some layers each token goes through a few of many small MLPs."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    """Of one expert."""
    normalise: bool
    """Whether the weights of a token's experts are made to sum to 1."""
    layers: frozenset[int]
    """Layers that have experts; the others have a plain MLP."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape and switches of one decoder with rotary positions, grouped queries and gated MLPs."""

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
    """RMSNorm over each head of queries and keys before the rotation (Qwen3, Gemma 3)."""
    layer_windows: tuple[int, ...] = ()
    """Of each layer: how many tokens back attention reaches, the token itself included; 0 for all. Empty where
    every layer sees all."""
    local_rope_theta: float | None = None
    """Base of the rotary positions in layers with a window, unscaled; None where it is that of all (Gemma 3)."""
    attention_scale: float | None = None
    """Factor of attention scores; None is head_dim ** -0.5."""
    attention_softcap: float = 0.0
    """Scores become ``cap * tanh(score / cap)``; 0 leaves them (Gemma 2)."""
    logits_softcap: float = 0.0
    """The same for logits."""
    activation: Activation = "silu"
    """Of gates: ``gelu`` by the error function, or approximated by the hyperbolic tangent."""
    norm_offset: float = 0.0
    """Added to the weights of all norms: 1 in Gemma."""
    update_norms: bool = False
    """What attention and MLP give is normalised before it is added to the residual (Gemma)."""
    embedding_scale: float = 1.0
    """Factor of the embeddings, rounded to the type of the weights (Gemma)."""
    experts: ExpertsSpec | None = None

    def window(self, layer: int) -> int:
        """How many tokens back attention reaches in a layer, itself included; 0 for all."""
        return self.layer_windows[layer] if self.layer_windows else 0

    @property
    def score_scale(self) -> float:
        """Factor of attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

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

    def integer(self, key: str, default: int | None = None, *, at_least: int = 1) -> int:
        """The whole number under ``key``."""
        value = self._content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise self.error(f"{key} must be a whole number of at least {at_least}, got {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """The number under ``key``, greater than 0."""
        return self.positive(key, self._content.get(key), default)

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
            only = f", only {' or '.join(map(repr, allowed))}" if allowed else ""
            raise self.error(f"{key}={value!r} is not supported{only}")

    def activation(self, key: str, default: str) -> Activation:
        """The activation under ``key``, by its name in transformers."""
        name = default if self.is_null(key) else self._content[key]
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise self.error(f"{key}={name!r} is not supported, only {', '.join(map(repr, _ACTIVATIONS))}")
        return _ACTIVATIONS[name]

    def token_ids(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """One token id, a list of them, or none; ``default`` where the file does not say."""
        if key not in self._content:
            return default
        value = self._content[key]
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and token >= 0 for token in ids):
            raise self.error(f"{key} must be a token id or a list of them, got {value!r}")
        return tuple(ids)

    def table(self, key: str) -> Mapping[str, Any]:
        """The table under ``key``; empty where there is none."""
        value = self._content.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{key} must be a table, got {value!r}")
        return value or {}

    def has(self, key: str) -> bool:
        """Whether the file says anything about ``key``, be it null."""
        return key in self._content

    def is_null(self, key: str) -> bool:
        """Whether ``key`` is null or not there."""
        return self._content.get(key) is None

    def integers(self, key: str) -> tuple[int, ...]:
        """The list of whole numbers, at least 0, under ``key``; empty where there is none."""
        value = self._content.get(key)
        numbers = [] if value is None else value
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise self.error(f"{key} must be a list of whole numbers, got {value!r}")
        return tuple(numbers)

    def words(self, key: str) -> tuple[str, ...] | None:
        """The list of strings under ``key``, or None."""
        value = self._content.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.error(f"{key} must be a list of strings, got {value!r}")
        return tuple(value)

    def error(self, message: str) -> ModelError:
        """The complaint, with the file in front."""
        return ModelError(f"{self.path}: {message}")

    def positive(self, key: str, value: Any, default: float | None) -> float:
        """``value``, found under ``key`` of some table, as a number greater than 0."""
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(f"{key} must be a number greater than 0, got {value!r}")
        return float(value)
