"""Qwen2 and Qwen2.5: queries, keys and values have a bias, nothing else has."""

from __future__ import annotations

from rlserve.engine.models.base import ConfigFile, ModelSpec
from rlserve.engine.models.rope_config import read_rope
from rlserve.engine.models.windows import qwen_windows

ARCHITECTURE = "Qwen2ForCausalLM"
MODEL_TYPE = "qwen2"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Qwen2."""
    num_layers = config.integer("num_hidden_layers")
    num_heads, hidden_size = config.integer("num_attention_heads"), config.integer("hidden_size")
    max_position = config.integer("max_position_embeddings", 32768)
    theta, scaling = read_rope(config, max_position)
    return ModelSpec(
        architecture=ARCHITECTURE,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", num_heads if config.has("num_key_value_heads") else 32),
        head_dim=config.integer("head_dim", hidden_size // num_heads),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=max_position,
        tied_embeddings=config.flag("tie_word_embeddings", False),
        eos_token_ids=config.token_ids("eos_token_id"),
        layer_windows=qwen_windows(config, num_layers),
        qkv_bias=True,
        activation=config.activation("hidden_act", "silu"),
    )
