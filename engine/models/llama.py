"""Llama 2 and 3."""

from __future__ import annotations

from rlserve.engine.models.base import ConfigFile, ModelSpec
from rlserve.engine.models.rope_config import read_rope

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = "llama"


def read_spec(config: ConfigFile, default_max_position: int = 2048) -> ModelSpec:
    """The spec of a Llama: biases are off unless the file says otherwise."""
    num_heads, hidden_size = config.integer("num_attention_heads"), config.integer("hidden_size")
    max_position = config.integer("max_position_embeddings", default_max_position)
    theta, scaling = read_rope(config, max_position)
    bias = config.flag("attention_bias", False)
    return ModelSpec(
        architecture=ARCHITECTURE,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", num_heads),
        head_dim=config.integer("head_dim", hidden_size // num_heads),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=max_position,
        tied_embeddings=config.flag("tie_word_embeddings", False),
        eos_token_ids=config.token_ids("eos_token_id", default=(2,)),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
        activation=config.activation("hidden_act", "silu"),
    )
