"""Qwen3 with experts: the attention of Qwen3, and in most layers a mixture of experts in place of the MLP."""

from __future__ import annotations

from dataclasses import replace

from rlserve.engine.models import qwen3
from rlserve.engine.models.base import ConfigFile, ExpertsSpec, ModelSpec
from rlserve.engine.models.windows import read_window

ARCHITECTURE = "Qwen3MoeForCausalLM"
MODEL_TYPE = "qwen3_moe"


def read_spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Qwen3 with experts. A window, where it is used, is that of every layer."""
    spec = qwen3.read_spec(config)
    num_layers, sparse_step = spec.num_layers, config.integer("decoder_sparse_step", 1)
    plain = frozenset(config.integers("mlp_only_layers"))
    num_experts = config.integer("num_local_experts" if config.has("num_local_experts") else "num_experts", 128)
    experts = ExpertsSpec(
        num_experts=num_experts,
        num_experts_per_token=config.integer("num_experts_per_tok", 8),
        intermediate_size=config.integer("moe_intermediate_size", 768),
        normalise=config.flag("norm_topk_prob", False),
        layers=frozenset(layer for layer in range(num_layers) if (layer + 1) % sparse_step == 0) - plain,
    )
    if experts.num_experts_per_token > num_experts:
        raise config.error(f"num_experts_per_tok={experts.num_experts_per_token} is more than {num_experts} experts")
    window = read_window(config, 4096) if config.flag("use_sliding_window", False) else 0
    return replace(
        spec,
        architecture=ARCHITECTURE,
        num_kv_heads=config.integer("num_key_value_heads", 4),
        head_dim=config.integer("head_dim", spec.hidden_size // spec.num_heads),
        layer_windows=(window,) * num_layers if window else (),
        experts=experts if experts.layers else None,
    )
