"""Rotary positions as ``config.json`` gives them: transformers 5 ``rope_parameters``, or the older keys.

Where a file says something twice, what counts is what counts in transformers, which the trainer uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlserve.engine.models.base import (
    ConfigFile,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)
from rlserve.engine.models.windows import FULL, SLIDING

SUPPORTED_TYPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
_ORIGINAL = "original_max_position_embeddings"


def read_rope(config: ConfigFile, max_position: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary positions of a model whose layers all have the same.

    Raises:
        ModelError: a rope type that the engine does not compute, or values that make no sense.
    """
    key = "rope_scaling" if config.table("rope_scaling") else "rope_parameters"
    parameters = config.table(key)
    nested = [name for name in (FULL, SLIDING) if name in parameters]
    if nested:
        raise config.error(f"{key} of {nested[0]} is not supported: all layers of this architecture have the same")
    original = None if config.is_null(_ORIGINAL) else config.integer(_ORIGINAL)
    if original is not None:
        parameters = {**parameters, _ORIGINAL: original}
    return _read(config, parameters, config.number("rope_theta", 10_000.0), max_position)


def read_layer_ropes(config: ConfigFile, max_position: int) -> tuple[float, RopeScaling | None, float]:
    """Base and scaling of layers that see everything, and the base of layers with a window (Gemma 3), which are not
    scaled.

    Raises:
        ModelError: as for :func:`read_rope`.
    """
    tables = config.table("rope_parameters")
    if tables and FULL not in tables and SLIDING not in tables:
        raise config.error(f"rope_parameters must hold a table for {FULL} and one for {SLIDING}")
    full = {**_table_of(config, tables, FULL), **config.table("rope_scaling")}
    # transformers asks the outer table whether to round, whatever the inner one says.
    full["truncate"] = tables.get("truncate", True)
    theta, scaling = _read(config, full, config.number("rope_theta", 1_000_000.0), max_position)
    local = _table_of(config, tables, SLIDING)
    local_theta, local_scaling = _read(config, local, config.number("rope_local_base_freq", 10_000.0), max_position)
    if local_scaling is not None:
        raise config.error(f"rope type {_kind(config, local)!r} of {SLIDING} is not supported, only 'default'")
    return theta, scaling, local_theta


def _table_of(config: ConfigFile, tables: Mapping[str, Any], layer_type: str) -> Mapping[str, Any]:
    table = tables.get(layer_type)
    if table is not None and not isinstance(table, dict):
        raise config.error(f"{layer_type} of rope_parameters must be a table, got {table!r}")
    return {"rope_type": "default"} if table is None else table


def _kind(config: ConfigFile, parameters: Mapping[str, Any]) -> str:
    """The rope type, under its new name or the older ``type``."""
    kinds = [parameters[key] for key in ("rope_type", "type") if key in parameters] or ["default"]
    if kinds[-1] != kinds[0]:
        raise config.error(f"rope_type is {kinds[0]!r} and type is {kinds[-1]!r}, which must be the same")
    if kinds[0] not in SUPPORTED_TYPES:
        raise config.error(f"rope type {kinds[0]!r} is not supported, only {', '.join(map(repr, SUPPORTED_TYPES))}")
    return str(kinds[0])


def _read(
    config: ConfigFile, parameters: Mapping[str, Any], default_theta: float, max_position: int
) -> tuple[float, RopeScaling | None]:
    _check_partial(config, parameters)
    theta = config.positive("rope_theta", parameters.get("rope_theta"), default_theta)
    return theta, _scaling(config, parameters, max_position)


def _check_partial(config: ConfigFile, parameters: Mapping[str, Any]) -> None:
    """In transformers these architectures rotate whole heads: plain positions pass ``partial_rotary_factor`` over, and
    with scaled ones such a model does not run."""
    partial = config.positive(
        "partial_rotary_factor",
        parameters.get("partial_rotary_factor"),
        config.number("partial_rotary_factor", 1.0),
    )
    kind = _kind(config, parameters)
    if kind != "default" and partial != 1.0:
        raise config.error(
            f"partial_rotary_factor={partial} is not supported with rope type {kind!r}: this architecture rotates "
            "whole heads, in transformers too"
        )


def _scaling(config: ConfigFile, parameters: Mapping[str, Any], max_position: int) -> RopeScaling | None:
    kind = _kind(config, parameters)
    if kind in ("default", "dynamic"):  # dynamic differs past max_position_embeddings alone, where the engine ends
        return None

    def number(key: str, default: float | None = None) -> float:
        return config.positive(key, parameters.get(key), default)

    if kind == "linear":
        return LinearScaling(factor=number("factor"))
    original = int(number(_ORIGINAL, max_position))
    if kind == "llama3":
        return Llama3Scaling(
            factor=number("factor"),
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_max_position=original,
        )
    if kind == "longrope":
        return _long_rope(config, parameters, max_position, original)
    # A factor that is null, and not left out, is the ratio of the two lengths.
    factor = number("factor", max_position / original if "factor" in parameters else None)
    return YarnScaling(
        factor=factor,
        attention_factor=_attention_factor(config, parameters, factor),
        beta_fast=config.positive("beta_fast", parameters.get("beta_fast") or None, 32.0),
        beta_slow=config.positive("beta_slow", parameters.get("beta_slow") or None, 1.0),
        original_max_position=original,
        truncate=bool(parameters.get("truncate", True)),
    )


def _long_rope(config: ConfigFile, parameters: Mapping[str, Any], max_position: int, original: int) -> LongRopeScaling:
    factor = config.positive("factor", parameters.get("factor"), max_position / original)
    # As the paper advises for a context that is so many times as long.
    advised = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRopeScaling(
        short_factors=_factors(config, parameters, "short_factor"),
        long_factors=_factors(config, parameters, "long_factor"),
        attention_factor=config.positive("attention_factor", parameters.get("attention_factor"), advised),
        original_max_position=original,
    )


def _factors(config: ConfigFile, parameters: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = parameters.get(key)
    if not isinstance(values, list):
        raise config.error(f"{key} must be a list of numbers, got {values!r}")
    return tuple(config.positive(key, value, None) for value in values)


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
