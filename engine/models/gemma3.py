"""Gemma 3, text alone: a Gemma 2 with normalised queries and keys, five layers of six with a window, and rotary
positions of their own in those."""

from __future__ import annotations

from dataclasses import replace

from rlserve.engine.models import gemma2
from rlserve.engine.models.base import ConfigFile, ModelSpec
from rlserve.engine.models.rope_config import read_local_theta, read_rope
from rlserve.engine.models.windows import FULL, SLIDING, read_window, windows_by_type

ARCHITECTURE = "Gemma3ForCausalLM"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Gemma 3 text model."""
    config.require("attn_logit_softcapping")  # transformers reads it and does not compute it
    spec = gemma2.read_spec(config)
    theta, scaling = read_rope(config, 1_000_000.0)
    key = "sliding_window_pattern" if config.has("sliding_window_pattern") else "_sliding_window_pattern"
    pattern = config.integer(key, 6)
    return replace(
        spec,
        architecture=ARCHITECTURE,
        max_position=config.integer("max_position_embeddings", 131072),
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=read_local_theta(config, 10_000.0),
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
