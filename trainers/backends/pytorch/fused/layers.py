"""Norms, attention and gated layers of transformers' models, with fused operations in place of many small ones.

A network keeps its modules, parameters and their names: only the classes of single modules change, and nothing
outside this network. What has no fused counterpart here stays as it is: Gemma's attention, experts.

Legend: S samples of a pass, L longest input, H hidden size, h heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlserve.trainers.backends.pytorch.fused.functions import (
    Rotation,
    add_rms_norm,
    gated_activation,
    rms_norm,
    split_heads,
)
from rlserve.trainers.backends.pytorch.fused.linear import RoundedProduct, joined, round_linear_layers

_NORM_OFFSETS = {
    "LlamaRMSNorm": 0.0,
    "MistralRMSNorm": 0.0,
    "Qwen2RMSNorm": 0.0,
    "Qwen3RMSNorm": 0.0,
    "Qwen3MoeRMSNorm": 0.0,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
}
"""Norms by their class, and what is added to their weights."""
_ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Qwen3MoeAttention")
_DECODER_LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "Qwen3MoeDecoderLayer",
)
_GATED_LAYERS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Qwen3MoeMLP", "Gemma2MLP", "Gemma3MLP")
_ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}
"""Of gated layers, and whether they are GELU."""


def fuse_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers of a policy, reference or critic's backbone compute in ``dtype`` with fused operations. Weights
    stay float32."""
    round_linear_layers(network, dtype)
    config: Any = network.config
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    module: Any
    for module in list(network.modules()):
        name = type(module).__name__
        if name in _NORM_OFFSETS:
            eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
            module.__class__ = FusedNorm
            module.eps, module.offset, module.compute_dtype = eps, _NORM_OFFSETS[name], dtype
        elif name in _DECODER_LAYERS:
            module.__class__ = FusedDecoderLayer
        elif name in _ATTENTIONS and config._attn_implementation == "sdpa":
            module.__class__ = FusedAttention
            module.product = joined((module.q_proj, module.k_proj, module.v_proj), dtype)
        elif name in _GATED_LAYERS and activation in _ACTIVATIONS:
            module.__class__ = FusedGatedLayer
            module.is_gelu = _ACTIVATIONS[activation]
            module.product = joined((module.gate_proj, module.up_proj), dtype)


class FusedNorm(nn.Module):
    """An RMS norm, whose outputs have the type that the layers after it compute in."""

    weight: nn.Parameter
    eps: float
    offset: float
    compute_dtype: torch.dtype

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H]"""
        return rms_norm(hidden, self.weight, self.eps, offset=self.offset, dtype=self.compute_dtype)

    def of_sum(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """Of the sum of two, and the sum; each [..., H]."""
        return add_rms_norm(hidden, update, self.weight, self.eps, offset=self.offset, dtype=self.compute_dtype)


class FusedDecoderLayer(nn.Module):
    """Attention and feed-forward layer, each after a norm; the first's outputs are added and normed at once."""

    input_layernorm: FusedNorm
    self_attn: nn.Module
    post_attention_layernorm: FusedNorm
    mlp: nn.Module

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """[S, L, H], as a model of transformers takes it."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **options)
        normed, summed = self.post_attention_layernorm.of_sum(hidden_states, attended)
        return summed + self.mlp(normed)  # type: ignore[no-any-return]


class FusedAttention(nn.Module):
    """Causal attention without a cache. Queries, keys and values are one product, and taken apart, normed and rotated
    by one operation."""

    config: Any
    head_dim: int
    scaling: float
    o_proj: nn.Module
    product: RoundedProduct | None
    """Of queries, keys and values."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **_options: Any,
    ) -> tuple[Tensor, None]:
        """[S, L, H], as a decoder layer of transformers takes it."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        packed = side_by_side(hidden_states, projections, self.product)
        query_norm, key_norm = getattr(self, "q_norm", None), getattr(self, "k_norm", None)
        rotation = Rotation(*position_embeddings, None, None, 0.0)
        if query_norm is not None and key_norm is not None:
            rotation = Rotation(*position_embeddings, query_norm.weight, key_norm.weight, query_norm.eps)
        parts = split_heads(packed, self.config.num_attention_heads, self.config.num_key_value_heads, rotation)
        heads = (states.transpose(1, 2) for states in parts)
        attended_SLhD, _ = sdpa_attention_forward(self, *heads, attention_mask, scaling=self.scaling)
        return self.o_proj(attended_SLhD.flatten(-2)), None


class FusedGatedLayer(nn.Module):
    """A feed-forward layer whose gate and its values are one product, and then one operation."""

    is_gelu: bool
    down_proj: nn.Module
    product: RoundedProduct | None
    """Of gate and values."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H]"""
        packed = side_by_side(hidden, (self.gate_proj, self.up_proj), self.product)
        return self.down_proj(gated_activation(packed, is_gelu=self.is_gelu))  # type: ignore[no-any-return]


def side_by_side(hidden: Tensor, layers: Sequence[Any], product: RoundedProduct | None) -> Tensor:
    """The outputs of several layers of the same inputs; of one product where that can be."""
    return torch.cat([layer(hidden) for layer in layers], dim=-1) if product is None else product(hidden)
