"""The products of adapters, made as the decoder's own: a row gets the same bits whatever rows are beside it wherever
that holds for the model itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlserve.engine.adapters.adapter import Adapter, LowRank, Product
from rlserve.engine.adapters.folder import AdapterMatrices
from rlserve.engine.adapters.fused import LowRankMatrices, fused
from rlserve.engine.decoder.linear import Linear
from rlserve.engine.models.shard import Shard
from rlserve.native.decoder_program import LINEAR_NAMES, LinearName, place_of
from rlserve.native.low_rank import LowRankPair, LowRankTable


def make_adapter(
    number: int,
    name: str,
    matrices: AdapterMatrices,
    shard: Shard,
    like: torch.Tensor,
    linear: type[Linear] | None,
) -> Adapter:
    """One rank's part of an adapter.

    Args:
        like: a weight of the model, for its type and device.
        linear: how the decoder multiplies; None: from panels, as compiled programs do.
    """
    with torch.inference_mode():
        products = fused(matrices, shard)
        if linear is None:
            return Adapter(id=number, name=name, layers=_table(products, shard.own.num_layers, like))
        layers = {place: _low_rank(each, like, linear) for place, each in products.items()}
    return Adapter(id=number, name=name, layers=layers)


def _table(
    products: Mapping[tuple[int, LinearName], LowRankMatrices], num_layers: int, like: torch.Tensor
) -> LowRankTable:
    pairs = {
        place_of(layer, name): LowRankPair(
            first=each.first.to(like.dtype), seconds=[second.to(like.dtype) for second in each.seconds]
        )
        for (layer, name), each in products.items()
    }
    return LowRankTable(num_layers * len(LINEAR_NAMES), pairs)


def _low_rank(matrices: LowRankMatrices, like: torch.Tensor, linear: type[Linear]) -> LowRank:
    first, second = (each.to(like.device, like.dtype) for each in (matrices.first, matrices.second))
    return LowRank(first=_product(first, linear), second=_product(second, linear))


def _product(weight_NK: torch.Tensor, linear: type[Linear]) -> Product:
    product = linear(weight_NK, None)
    product.weight_changed()
    num_outputs = len(weight_NK)
    return lambda x_nK: product(x_nK, x_nK.new_empty(len(x_nK), num_outputs))
