"""The matrices of an adapter for the fused products of the decoder, of one rank's part of the model.

::

    q_proj  A [r, H], B [Q, r]  ┐        first   [3 r, H], the A's one below the other
    k_proj  A [r, H], B [K, r]  ├──► qkv
    v_proj  A [r, H], B [K, r]  ┘        seconds [Q, r], [K, r], [K, r]: blocks on the diagonal of [Q + 2 K, 3 r]

Several ranks split an adapter as they split the layer beneath it: rows of B where they hold rows of the layer, columns
of A where they hold columns. What they add is then of their own outputs, or part of a sum that is made over the ranks
anyway.

Legend: r rank, H hidden size, Q and K sizes of queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlserve.engine.adapters.folder import AdapterMatrices, sizes_of
from rlserve.engine.models.shard import Shard
from rlserve.native.decoder_program import LinearName

_EVEN = 2
"""Ranks are filled up with zeros to a multiple of this: some products take numbers in pairs."""
_MODULES: Mapping[LinearName, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "output": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


@dataclass(frozen=True, kw_only=True)
class LowRankMatrices:
    """Of one fused product: what is added to it is ``x @ first.T @ second.T``."""

    first: torch.Tensor
    """[rank, inputs]"""
    seconds: tuple[torch.Tensor, ...]
    """[outputs, rank] each, one for each linear layer; of rank 0 where that has no adapter. Both add up."""

    @property
    def second(self) -> torch.Tensor:
        """[outputs, rank] of all."""
        whole: torch.Tensor = torch.block_diag(*self.seconds)  # type: ignore[no-untyped-call]
        return whole


def fused(matrices: AdapterMatrices, shard: Shard) -> Mapping[tuple[int, LinearName], LowRankMatrices]:
    """By layer and product."""
    found: dict[tuple[int, LinearName], LowRankMatrices] = {}
    for layer in sorted({layer for layer, _ in matrices}):
        for part, modules in _MODULES.items():
            if any((layer, module) in matrices for module in modules):
                found[layer, part] = _stacked(matrices, shard, layer, modules)
    return found


def _stacked(matrices: AdapterMatrices, shard: Shard, layer: int, modules: tuple[str, ...]) -> LowRankMatrices:
    firsts, seconds = [], []
    for module in modules:
        pair = matrices.get((layer, module))
        if pair is None:
            seconds.append(torch.zeros(sizes_of(shard.own, layer)[module][1], 0))
            continue
        name = f".{module}.weight"
        is_of_columns = module in ("o_proj", "down_proj")
        first = shard.cut(name, pair.first) if is_of_columns else pair.first
        second = pair.second if is_of_columns else shard.cut(name, pair.second)
        added = -len(first) % _EVEN
        firsts.append(torch.nn.functional.pad(first, (0, 0, 0, added)))
        seconds.append(torch.nn.functional.pad(second, (0, added)))
    return LowRankMatrices(first=torch.cat(firsts), seconds=tuple(seconds))
