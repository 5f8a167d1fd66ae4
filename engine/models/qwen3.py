"""Qwen3 (dense): each head of queries and keys is normalised before the rotation."""

from __future__ import annotations

from rlserve.engine.models.base import ConfigFile, ModelSpec
from rlserve.engine.models.rope_config import read_rope
from rlserve.engine.models.windows import qwen_windows

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Qwen3; its head size is its own and not hidden size / heads."""
    num_layers = config.integer("num_hidden_layers")
    num_heads = config.integer("num_attention_heads")
    max_position = config.integer("max_position_embeddings", 32768)
    theta, scaling = read_rope(config, max_position)
    bias = config.flag("attention_bias", False)
    return ModelSpec(
        architecture=ARCHITECTURE,
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", num_heads if config.has("num_key_value_heads") else 32),
        head_dim=config.integer("head_dim", 128),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=max_position,
        tied_embeddings=config.flag("tie_word_embeddings", False),
        eos_token_ids=config.token_ids("eos_token_id"),
        layer_windows=qwen_windows(config, num_layers),
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm=True,
        activation=config.activation("hidden_act", "silu"),
    )
