"""Gemma 3, text alone: a Gemma 2 with normalised queries and keys, five layers of six with a window, and rotary
positions of their own in those."""

from __future__ import annotations

from dataclasses import replace

from rlserve.engine.models import gemma2
from rlserve.engine.models.base import ConfigFile, ModelSpec
from rlserve.engine.models.rope_config import read_layer_ropes
from rlserve.engine.models.windows import FULL, SLIDING, read_window, windows_by_type

ARCHITECTURE = "Gemma3ForCausalLM"
MODEL_TYPE = "gemma3_text"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Gemma 3 text model."""
    gemma2.require_supported(config)
    config.require("attn_logit_softcapping")  # transformers reads it and does not compute it
    max_position = config.integer("max_position_embeddings", 131072)
    theta, scaling, local_theta = read_layer_ropes(config, max_position)
    spec = gemma2.decoder_spec(config, max_position, theta, scaling)
    pattern = config.integer("sliding_window_pattern", 6)
    return replace(
        spec,
        architecture=ARCHITECTURE,
        local_rope_theta=local_theta,
        layer_windows=windows_by_type(
            config,
            spec.num_layers,
            read_window(config, 4096),
            lambda layer: SLIDING if (layer + 1) % pattern else FULL,
        ),
        query_key_norm=True,
        attention_softcap=0.0,
        logits_softcap=0.0 if config.is_null("final_logit_softcapping") else spec.logits_softcap,
    )
