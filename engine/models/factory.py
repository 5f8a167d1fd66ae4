"""From a Hugging Face folder to a :class:`ModelSpec`. Reads JSON only and imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlserve.engine.models import gemma2, gemma3, llama, mistral, qwen2, qwen3, qwen3_moe
from rlserve.engine.models.base import ConfigFile, LongRopeScaling, ModelSpec
from rlserve.errors import ModelError

_FAMILIES = (llama, qwen2, qwen3, mistral, gemma2, gemma3, qwen3_moe)
FAMILIES: dict[str, Callable[[ConfigFile], ModelSpec]] = {family.ARCHITECTURE: family.read_spec for family in _FAMILIES}
_MODEL_TYPES: dict[str, str] = {family.ARCHITECTURE: family.MODEL_TYPE for family in _FAMILIES}


def check_supported(model_path: str | Path) -> None:
    """Check that the folder holds a model that the engine runs, by its ``config.json`` alone.

    Raises:
        ModelError: the folder is no model, the architecture is not supported (named, with those that are),
            or the configuration is not usable.
    """
    read_model_spec(model_path)


def read_model_spec(model_path: str | Path) -> ModelSpec:
    """The spec of the model in a folder; ``generation_config.json`` adds its end-of-sequence tokens.

    Raises:
        ModelError: as for :func:`check_supported`.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give the path of a Hugging Face model folder")
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(f"{folder}: not a model folder, it has no config.json")
    content = _read_json(config_path)
    names = content.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if architecture not in FAMILIES:
        named = repr(architecture) if architecture else "none"
        raise ModelError(f"{config_path}: architecture {named} is not supported; supported: {', '.join(FAMILIES)}")
    config = ConfigFile(config_path, content)
    spec = FAMILIES[architecture](config)
    config.require("model_type", _MODEL_TYPES[architecture])  # transformers goes by it and not by the architecture
    config.require("quantization_config")
    if spec.num_heads % spec.num_kv_heads or spec.head_dim % 2:
        raise ModelError(
            f"{config_path}: {spec.num_heads} heads do not divide by {spec.num_kv_heads} key-value heads, "
            f"or head_dim {spec.head_dim} is odd"
        )
    scaling = spec.rope_scaling
    if isinstance(scaling, LongRopeScaling):
        for key, factors in (("short_factor", scaling.short_factors), ("long_factor", scaling.long_factors)):
            if len(factors) != spec.head_dim // 2:
                raise config.error(
                    f"{key} must have a number for each of the {spec.head_dim // 2} frequencies, got {len(factors)}"
                )
    generation_path = folder / "generation_config.json"
    if generation_path.is_file():
        generation_eos = ConfigFile(generation_path, _read_json(generation_path)).token_ids("eos_token_id")
        spec = replace(spec, eos_token_ids=generation_eos or spec.eos_token_ids)
    return spec


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    return content
