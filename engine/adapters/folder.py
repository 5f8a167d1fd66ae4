"""The matrices of a peft folder, for the fused products of the decoder.

::

    q_proj  A [r, H], B [Q, r]  ┐        first [3 r, H], the A's one below the other
    k_proj  A [r, H], B [K, r]  ├──► qkv
    v_proj  A [r, H], B [K, r]  ┘        second [Q + 2 K, 3 r], the scaled B's as blocks on the diagonal

Legend: r rank, H hidden size, Q and K sizes of queries and keys.
"""

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
from rlserve.native.decoder_program import LinearName

WEIGHTS_NAME = "adapter_model.safetensors"

_NAME = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+))\.lora_([AB])\.weight")
_EVEN = 2
"""Ranks are filled up with zeros to a multiple of this: some products take numbers in pairs."""


@dataclass(frozen=True, kw_only=True)
class LowRankMatrices:
    """Of one fused product: what is added to it is ``x @ first.T @ second.T``."""

    first: torch.Tensor
    """[rank, inputs]"""
    second: torch.Tensor
    """[outputs, rank], with the scale in it."""


@dataclass(frozen=True, kw_only=True)
class _Module:
    """A linear layer of Hugging Face's, as rows of a fused product."""

    name: str
    num_outputs: int


def read_adapter(folder: Path, spec: ModelSpec) -> Mapping[tuple[int, LinearName], LowRankMatrices]:
    """Read an adapter, by layer and product; in float32, on the CPU.

    Raises:
        ModelError: the folder is no adapter of this model, or one that the engine does not compute.
    """
    config = read_adapter_config(folder)
    pairs = _read_pairs(folder, spec)
    found: dict[tuple[int, LinearName], LowRankMatrices] = {}
    for layer in range(spec.num_layers):
        for part, (num_inputs, modules) in _products(spec, layer).items():
            own = {module.name: pairs.pop((layer, module.name), None) for module in modules}
            if any(pair is not None for pair in own.values()):
                found[layer, part] = _stacked(folder, config, layer, num_inputs, modules, own)
    if pairs:
        layer, module = min(pairs)
        experts = " (of layers with experts only attention can have adapters)" if spec.experts is not None else ""
        raise ModelError(f"{folder}: the model has no {module} in layer {layer} that could have an adapter{experts}")
    if not found:
        raise ModelError(f"{folder / WEIGHTS_NAME} has no adapter at all")
    return found


def _products(spec: ModelSpec, layer: int) -> dict[LinearName, tuple[int, tuple[_Module, ...]]]:
    """Inputs and rows of each product of a layer that can have an adapter."""
    products: dict[LinearName, tuple[int, tuple[_Module, ...]]] = {
        "qkv": (
            spec.hidden_size,
            (
                _Module(name="q_proj", num_outputs=spec.query_size),
                _Module(name="k_proj", num_outputs=spec.kv_size),
                _Module(name="v_proj", num_outputs=spec.kv_size),
            ),
        ),
        "output": (spec.query_size, (_Module(name="o_proj", num_outputs=spec.hidden_size),)),
    }
    if spec.experts is None or layer not in spec.experts.layers:
        gate_up = tuple(_Module(name=name, num_outputs=spec.intermediate_size) for name in ("gate_proj", "up_proj"))
        products["gate_up"] = (spec.hidden_size, gate_up)
        products["down"] = (spec.intermediate_size, (_Module(name="down_proj", num_outputs=spec.hidden_size),))
    return products


_Pair = dict[str, torch.Tensor]
"""``A`` and ``B``."""


def _read_pairs(folder: Path, spec: ModelSpec) -> dict[tuple[int, str], _Pair]:
    """Both matrices by layer and module."""
    pairs: dict[tuple[int, str], _Pair] = {}
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


def _stacked(
    folder: Path,
    config: AdapterConfig,
    layer: int,
    num_inputs: int,
    modules: tuple[_Module, ...],
    pairs: Mapping[str, _Pair | None],
) -> LowRankMatrices:
    """The matrices of a fused product."""
    firsts: list[torch.Tensor] = []
    blocks: list[torch.Tensor] = []
    for module in modules:
        pair = pairs[module.name]
        if pair is None:
            blocks.append(torch.zeros(module.num_outputs, 0))
            continue
        problem = _problem(config, pair, num_inputs, module.num_outputs)
        if problem is not None:
            raise ModelError(f"{folder}: {module.name} of layer {layer} {problem}")
        firsts.append(pair["A"])
        blocks.append(pair["B"] * config.scale(len(pair["A"])))
    first, second = torch.cat(firsts), torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    num_added = -len(first) % _EVEN
    pad = torch.nn.functional.pad
    return LowRankMatrices(first=pad(first, (0, 0, 0, num_added)), second=pad(second, (0, num_added)))


def _problem(config: AdapterConfig, pair: _Pair, num_inputs: int, num_outputs: int) -> str | None:
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
