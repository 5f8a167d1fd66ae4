"""Mistral: a Llama whose layers see a sliding window, if the file has one."""

from __future__ import annotations

from dataclasses import replace

from rlserve.engine.models import llama
from rlserve.engine.models.base import ConfigFile, ModelSpec
from rlserve.engine.models.windows import SLIDING, read_window, windows_by_type

ARCHITECTURE = "MistralForCausalLM"
MODEL_TYPE = "mistral"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Mistral: no biases, eight key-value heads unless the file says otherwise."""
    spec = llama.read_spec(config, default_max_position=131072)
    window = read_window(config, 4096)
    return replace(
        spec,
        architecture=ARCHITECTURE,
        num_kv_heads=config.integer("num_key_value_heads", 8),
        layer_windows=windows_by_type(config, spec.num_layers, window, lambda layer: SLIDING) if window else (),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )
