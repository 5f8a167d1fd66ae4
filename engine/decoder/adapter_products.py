"""The products of adapters, made as the decoder's own: a row gets the same bits whatever rows are beside it wherever
that holds for the model itself."""

from __future__ import annotations

import torch

from rlserve.engine.adapters.adapter import Adapter, LowRank, Product
from rlserve.engine.adapters.folder import AdapterMatrices
from rlserve.engine.adapters.fused import LowRankMatrices, fused
from rlserve.engine.decoder.linear import Linear
from rlserve.engine.models.shard import Shard
from rlserve.native.panels import panels_of
from rlserve.native.program import Projection


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
        layers = {place: _low_rank(each, like, linear) for place, each in fused(matrices, shard).items()}
    return Adapter(id=number, name=name, layers=layers)


def _low_rank(matrices: LowRankMatrices, like: torch.Tensor, linear: type[Linear] | None) -> LowRank:
    first, second = (each.to(like.device, like.dtype) for each in (matrices.first, matrices.second))
    if linear is None:
        return LowRank(first=_from_panels(first), second=_from_panels(second))
    return LowRank(first=_plain(first, linear), second=_plain(second, linear))


def _plain(weight_NK: torch.Tensor, linear: type[Linear]) -> Product:
    product = linear(weight_NK, None)
    product.weight_changed()
    num_outputs = len(weight_NK)
    return lambda x_nK: product(x_nK, x_nK.new_empty(len(x_nK), num_outputs))


def _from_panels(weight_NK: torch.Tensor) -> Product:
    projection = Projection(panels_of(weight_NK), len(weight_NK))

    def product(x_nK: torch.Tensor) -> torch.Tensor:
        return projection.multiply(x_nK, torch.empty(len(x_nK), projection.num_outputs)).to(x_nK.dtype)

    return product
