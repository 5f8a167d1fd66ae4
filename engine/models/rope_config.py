"""Rotary positions as ``config.json`` gives them: transformers 5 ``rope_parameters``, or the older keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlserve.engine.models.base import ConfigFile, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

SUPPORTED_TYPES = ("default", "dynamic", "linear", "llama3", "yarn")


def read_rope(config: ConfigFile, default_theta: float = 10_000.0) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary positions, of the layers that see everything where layers differ.

    Raises:
        ModelError: a rope type that the engine does not compute, or values that make no sense.
    """
    parameters = _parameters(config, "full_attention")
    theta = parameters.get("rope_theta")
    base = config.number("rope_theta", default_theta) if theta is None else config.positive("rope_theta", theta, None)
    partial = parameters.get("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if partial is not None and partial != 1.0:
        raise config.error(f"partial_rotary_factor={partial!r} is not supported, only 1")
    return base, _scaling(config, parameters)


def read_local_theta(config: ConfigFile, default: float) -> float:
    """Base of the rotary positions of layers with a window; they are not scaled."""
    parameters = _parameters(config, "sliding_attention") if _is_nested(config) else {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise config.error(f"rope type {kind!r} of sliding_attention is not supported, only 'default'")
    theta = parameters.get("rope_theta")
    if theta is not None:
        return config.positive("rope_theta", theta, None)
    return config.number("rope_local_base_freq", default)


def _is_nested(config: ConfigFile) -> bool:
    return isinstance(config.table("rope_parameters").get("sliding_attention"), dict)


def _parameters(config: ConfigFile, layer_type: str) -> Mapping[str, Any]:
    parameters = config.table("rope_parameters") or config.table("rope_scaling")
    nested = parameters.get(layer_type)
    return nested if isinstance(nested, dict) else parameters


def _scaling(config: ConfigFile, parameters: Mapping[str, Any]) -> RopeScaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in SUPPORTED_TYPES:
        raise config.error(f"rope type {kind!r} is not supported, only {', '.join(map(repr, SUPPORTED_TYPES))}")
    if kind in ("default", "dynamic"):  # dynamic differs past max_position_embeddings alone, where the engine ends
        return None

    def number(key: str, default: float | None = None) -> float:
        return config.positive(key, parameters.get(key), default)

    factor = number("factor")
    if kind == "linear":
        return LinearScaling(factor=factor)
    longest = None if config.is_null("max_position_embeddings") else config.integer("max_position_embeddings")
    original = int(number("original_max_position_embeddings", longest))
    if kind == "llama3":
        return Llama3Scaling(
            factor=factor,
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_max_position=original,
        )
    return YarnScaling(
        factor=factor,
        attention_factor=_attention_factor(config, parameters, factor),
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        original_max_position=original,
        truncate=parameters.get("truncate") is not False,
    )


def _attention_factor(config: ConfigFile, parameters: Mapping[str, Any], factor: float) -> float:
    """What the file says, or as the YaRN paper advises: 0.1 ln(factor) + 1."""

    def advised(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = parameters.get("attention_factor")
    if given is not None:
        return config.positive("attention_factor", given, None)
    scale, scale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if scale and scale_all:
        numerator = advised(config.positive("mscale", scale, None))
        return numerator / advised(config.positive("mscale_all_dim", scale_all, None))
    return advised(1.0)
