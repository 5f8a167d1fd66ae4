"""Gemma 2: norms before and after attention and MLP, capped scores and logits, every second layer with a window."""

from __future__ import annotations

from rlserve.engine.models.base import ConfigFile, ModelSpec, RopeScaling
from rlserve.engine.models.rope_config import read_rope
from rlserve.engine.models.windows import FULL, SLIDING, read_window, windows_by_type

ARCHITECTURE = "Gemma2ForCausalLM"
MODEL_TYPE = "gemma2"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Gemma 2."""
    require_supported(config)
    max_position = config.integer("max_position_embeddings", 8192)
    return decoder_spec(config, max_position, *read_rope(config, max_position))


def require_supported(config: ConfigFile) -> None:
    """Refuse what no Gemma is computed with."""
    config.require("use_bidirectional_attention", False)


def decoder_spec(config: ConfigFile, max_position: int, theta: float, scaling: RopeScaling | None) -> ModelSpec:
    """The spec with rotary positions of its own; embedding and output head are one matrix unless the file says
    otherwise."""
    num_layers = config.integer("num_hidden_layers")
    hidden_size = config.integer("hidden_size")
    bias = config.flag("attention_bias", False)
    return ModelSpec(
        architecture=ARCHITECTURE,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=config.integer("num_attention_heads"),
        num_kv_heads=config.integer("num_key_value_heads", 4),
        head_dim=config.integer("head_dim", 256),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=max_position,
        tied_embeddings=config.flag("tie_word_embeddings", True),
        eos_token_ids=config.token_ids("eos_token_id", default=(1,)),
        qkv_bias=bias,
        output_bias=bias,
        layer_windows=windows_by_type(
            config, num_layers, read_window(config, 4096), lambda layer: FULL if layer % 2 else SLIDING
        ),
        attention_scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=_cap(config, "attn_logit_softcapping", 50.0),
        logits_softcap=_cap(config, "final_logit_softcapping", 30.0),
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        norm_offset=1.0,
        update_norms=True,
        embedding_scale=hidden_size**0.5,
    )


def _cap(config: ConfigFile, key: str, default: float) -> float:
    """0 where the file says null."""
    return 0.0 if config.has(key) and config.is_null(key) else config.number(key, default)
