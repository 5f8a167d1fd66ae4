"""The matrices of a peft folder, checked against the model. Legend: r rank, K inputs and N outputs of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from rlserve.engine.adapters.adapter_config import AdapterConfig, read_adapter_config
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.safetensors_file import check_shard
from rlserve.errors import ModelError

WEIGHTS_NAME = "adapter_model.safetensors"

_NAME = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+))\.lora_([AB])\.weight")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is added to a linear layer: ``x @ first.T @ second.T``."""

    first: torch.Tensor
    """[r, K]"""
    second: torch.Tensor
    """[N, r], with the scale in it."""


AdapterMatrices = Mapping[tuple[int, str], Pair]
"""By layer and Hugging Face's name of the linear layer in it, such as ``q_proj``."""


def read_adapter(folder: Path, spec: ModelSpec) -> AdapterMatrices:
    """Read an adapter of a model; in float32, on the CPU.

    Raises:
        ModelError: the folder is no adapter of this model, or one that the engine does not compute.
    """
    config = read_adapter_config(folder)
    found = _read_pairs(folder)
    for place, pair in sorted(found.items()):
        layer, module = place
        sizes = sizes_of(spec, layer).get(module)
        if sizes is None:
            experts = " (of layers with experts only attention can have adapters)" if spec.experts is not None else ""
            raise ModelError(
                f"{folder}: the model has no {module} in layer {layer} that could have an adapter{experts}"
            )
        problem = _problem(config, pair, *sizes)
        if problem is not None:
            raise ModelError(f"{folder}: {module} of layer {layer} {problem}")
    if not found:
        raise ModelError(f"{folder / WEIGHTS_NAME} has no adapter at all")
    return {
        place: Pair(first=pair["A"], second=pair["B"] * config.scale(len(pair["A"]))) for place, pair in found.items()
    }


def sizes_of(spec: ModelSpec, layer: int) -> dict[str, tuple[int, int]]:
    """Numbers of inputs and outputs of those linear layers in a layer that can have an adapter."""
    if layer >= spec.num_layers:
        return {}
    hidden, inner = spec.hidden_size, spec.intermediate_size
    sizes = {
        "q_proj": (hidden, spec.query_size),
        "k_proj": (hidden, spec.kv_size),
        "v_proj": (hidden, spec.kv_size),
        "o_proj": (spec.query_size, hidden),
    }
    if spec.experts is None or layer not in spec.experts.layers:
        sizes |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    return sizes


_Tensors = dict[str, torch.Tensor]
"""``A`` and ``B``."""


def _read_pairs(folder: Path) -> dict[tuple[int, str], _Tensors]:
    """Both matrices by layer and module."""
    pairs: dict[tuple[int, str], _Tensors] = {}
    for name, tensor in _read_tensors(folder):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ModelError(
                f"{folder}: {name} is not supported, adapters can be of q_proj, k_proj, v_proj, o_proj, gate_proj, "
                "up_proj and down_proj: train with target_modules among these, or merge the adapter into the model"
            )
        _, layer, module, matrix = match.groups()
        pairs.setdefault((int(layer), module), {})[matrix] = tensor.to(torch.float32)
    return pairs


def _read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        old = " (adapter_model.bin must be converted to safetensors)" if (folder / "adapter_model.bin").exists() else ""
        raise ModelError(f"{folder} is no adapter: it has no {WEIGHTS_NAME}{old}")
    check_shard(path)
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def _problem(config: AdapterConfig, pair: _Tensors, num_inputs: int, num_outputs: int) -> str | None:
    """Why a pair cannot be of this module, or None."""
    if pair.keys() != {"A", "B"}:
        return f"has no lora_{min({'A', 'B'} - pair.keys())}"
    first, second = pair["A"], pair["B"]
    rank = len(first)
    if first.shape != (rank, num_inputs) or second.shape != (num_outputs, rank) or rank == 0:
        return (
            f"has matrices {list(first.shape)} and {list(second.shape)}, must be [r, {num_inputs}] and "
            f"[{num_outputs}, r]: it is an adapter of another model"
        )
    if rank != config.rank and not config.has_other_ranks:
        return f"has rank {rank}, and adapter_config.json says r={config.rank}"
    if not (first.isfinite().all() and second.isfinite().all()):
        return "has numbers that are not finite"
    return None
