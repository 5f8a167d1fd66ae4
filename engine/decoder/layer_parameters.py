"""The weights of one decoder layer: which tensors there are, of what shape, under which Hugging Face names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from rlserve.engine.models.base import ExpertsSpec, ModelSpec


@dataclass(frozen=True, kw_only=True)
class MlpParameters:
    """One gated MLP; or, with a router, those of all experts, one below the other."""

    router: torch.Tensor | None
    """[experts, input]"""
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class LayerParameters:
    """One decoder layer; matrices are [output, input], as Hugging Face stores them, or the same numbers in panels."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    attention_update_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp: MlpParameters
    mlp_update_norm: torch.Tensor | None


class NewTensor(Protocol):
    """Makes a tensor whose rows are the named parts, one below the other."""

    def __call__(self, names: list[str], rows: list[int], *columns: int) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A tensor [experts, rows, columns] as transformers keeps it in memory, where its checkpoints have parts."""

    shape: tuple[int, int, int]
    names: tuple[str, ...]
    """Of the parts, in order."""

    def parts(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of the parts by name."""
        return dict(zip(self.names, tensor.flatten(0, 1).chunk(len(self.names)), strict=True))


def new_layer(spec: ModelSpec, index: int, new: NewTensor) -> LayerParameters:
    """The parameters of layer ``index``, made by ``new``."""
    prefix = f"model.layers.{index}."
    attention = f"{prefix}self_attn."
    qkv_rows = [spec.query_size, spec.kv_size, spec.kv_size]
    qkv_names = [f"{attention}{part}_proj" for part in "qkv"]

    def norm(name: str, size: int, present: bool = True) -> torch.Tensor | None:
        return new([f"{prefix}{name}.weight"], [size]) if present else None

    def hidden_norm(name: str) -> torch.Tensor:
        return new([f"{prefix}{name}.weight"], [spec.hidden_size])

    return LayerParameters(
        input_norm=hidden_norm("input_layernorm"),
        qkv=new([f"{name}.weight" for name in qkv_names], qkv_rows, spec.hidden_size),
        qkv_bias=new([f"{name}.bias" for name in qkv_names], qkv_rows) if spec.qkv_bias else None,
        query_norm=norm("self_attn.q_norm", spec.head_dim, spec.query_key_norm),
        key_norm=norm("self_attn.k_norm", spec.head_dim, spec.query_key_norm),
        output=new([f"{attention}o_proj.weight"], [spec.hidden_size], spec.query_size),
        output_bias=new([f"{attention}o_proj.bias"], [spec.hidden_size]) if spec.output_bias else None,
        attention_update_norm=norm("post_attention_layernorm", spec.hidden_size, spec.update_norms),
        mlp_norm=hidden_norm("pre_feedforward_layernorm" if spec.update_norms else "post_attention_layernorm"),
        mlp=_new_mlp(spec, index, new),
        mlp_update_norm=norm("post_feedforward_layernorm", spec.hidden_size, spec.update_norms),
    )


def expert_stacks(spec: ModelSpec) -> Mapping[str, Stack]:
    """The stacked form of the experts' weights, by name: what a model in memory has in place of the parts."""
    if spec.experts is None:
        return {}
    experts, stacks = spec.experts, {}
    for layer in sorted(experts.layers):
        prefix = f"model.layers.{layer}.mlp.experts."
        gate_up, down = _expert_names(experts, layer)
        stacks[f"{prefix}gate_up_proj"] = Stack(
            shape=(experts.num_experts, 2 * experts.intermediate_size, spec.hidden_size), names=tuple(gate_up)
        )
        stacks[f"{prefix}down_proj"] = Stack(
            shape=(experts.num_experts, spec.hidden_size, experts.intermediate_size), names=tuple(down)
        )
    return stacks


def _new_mlp(spec: ModelSpec, index: int, new: NewTensor) -> MlpParameters:
    experts, prefix = spec.experts, f"model.layers.{index}.mlp."
    if experts is not None and index in experts.layers:
        gate_up, down = _expert_names(experts, index)
        size = experts.intermediate_size
        return MlpParameters(
            router=new([f"{prefix}gate.weight"], [experts.num_experts], spec.hidden_size),
            gate_up=new(gate_up, [size] * len(gate_up), spec.hidden_size),
            gate_up_bias=None,
            down=new(down, [spec.hidden_size] * len(down), size),
            down_bias=None,
        )
    names, rows = [f"{prefix}{part}_proj" for part in ("gate", "up")], [spec.intermediate_size] * 2
    return MlpParameters(
        router=None,
        gate_up=new([f"{name}.weight" for name in names], rows, spec.hidden_size),
        gate_up_bias=new([f"{name}.bias" for name in names], rows) if spec.mlp_bias else None,
        down=new([f"{prefix}down_proj.weight"], [spec.hidden_size], spec.intermediate_size),
        down_bias=new([f"{prefix}down_proj.bias"], [spec.hidden_size]) if spec.mlp_bias else None,
    )


def _expert_names(experts: ExpertsSpec, layer: int) -> tuple[list[str], list[str]]:
    """Names of gate and up of each expert, and of down of each."""
    prefixes = [f"model.layers.{layer}.mlp.experts.{expert}." for expert in range(experts.num_experts)]
    gate_up = [f"{prefix}{part}_proj.weight" for prefix in prefixes for part in ("gate", "up")]
    return gate_up, [f"{prefix}down_proj.weight" for prefix in prefixes]
