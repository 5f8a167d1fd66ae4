"""What ``adapter_config.json`` of a peft folder says, as far as the engine computes it; the rest is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlserve.errors import ModelError

FILE_NAME = "adapter_config.json"

_MERGE = "merge it into the model with peft's merge_and_unload, and serve the result"
_UNLIKE_LORA = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication", "kasa_config"),
    *("target_parameters", "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "monteclora_config"),
    *("velora_config", "fan_in_fan_out", "alpha_pattern"),
)
"""Settings that compute something else than ``x + scale · B A x`` in linear layers; empty or false is fine."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the model's own weights alone."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """How strong the products of an adapter are."""

    rank: int
    alpha: float
    is_rank_stabilised: bool
    """Scaled by alpha / √rank (arXiv 2312.03732) in place of alpha / rank."""
    has_other_ranks: bool
    """Some layers have a rank of their own (``rank_pattern``)."""

    def scale(self, rank: int) -> float:
        """Of the product of a layer with this rank."""
        return self.alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the configuration of an adapter.

    Raises:
        ModelError: it is none, or one that the engine does not compute.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ModelError(f"{folder} is no adapter: it has no {FILE_NAME}, as peft's save_pretrained writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no JSON object")
    if content.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type={content.get('peft_type')!r} is not supported, must be LORA; {_MERGE}")
    for name in _UNLIKE_LORA:
        if content.get(name):
            raise ModelError(f"{path}: {name}={content[name]!r} is not supported, only plain LoRA is; {_MERGE}")
    if content.get("bias", "none") != "none":
        raise ModelError(f"{path}: bias={content['bias']!r} is not supported, must be 'none'; {_MERGE}")
    if (start := content.get("init_lora_weights")) not in _PLAIN_STARTS:
        raise ModelError(
            f"{path}: init_lora_weights={start!r} has changed the model's own weights too; convert it with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    return AdapterConfig(
        rank=int(_number(path, content, "r", lambda value: isinstance(value, int) and value >= 1)),
        alpha=_number(path, content, "lora_alpha", math.isfinite),
        is_rank_stabilised=bool(content.get("use_rslora")),
        has_other_ranks=bool(content.get("rank_pattern")),
    )


def _number(path: Path, content: Mapping[str, Any], name: str, is_right: Callable[[Any], bool]) -> float:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_right(value):
        raise ModelError(f"{path}: {name}={value!r} is no number that can be used")
    return value
