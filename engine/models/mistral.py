"""Mistral: a Llama whose layers see a sliding window, if the file has one."""

from __future__ import annotations

from dataclasses import replace

from rlserve.engine.models import llama
from rlserve.engine.models.base import ConfigFile, ModelSpec
from rlserve.engine.models.windows import read_window

ARCHITECTURE = "MistralForCausalLM"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Mistral: no biases, eight key-value heads unless the file says otherwise."""
    spec = llama.read_spec(config)
    window = read_window(config, 4096)
    return replace(
        spec,
        architecture=ARCHITECTURE,
        num_kv_heads=config.integer("num_key_value_heads", 8),
        max_position=config.integer("max_position_embeddings", 131072),
        layer_windows=(window,) * spec.num_layers if window else (),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )
