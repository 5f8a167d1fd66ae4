"""An adapter as it is computed with, and which tokens of a step it is for.

Legend: T tokens of a step, n of them with one adapter, K inputs, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rlserve.native.decoder_program import LinearName

Product = Callable[[torch.Tensor], torch.Tensor]
"""From [n, K] to [n, N], a new tensor."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``second(first(x))``."""

    first: Product
    second: Product


AdapterLayers = Mapping[tuple[int, LinearName], LowRank]
"""By layer and product."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A loaded adapter. Whoever computes with it keeps it in memory."""

    id: int
    """Never another's in this engine, also where one of the same name was unloaded; above 0."""
    name: str
    layers: AdapterLayers


NO_ADAPTER_ID = 0
"""In place of an adapter's id, for the model alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterTokens:
    """The tokens of a step that have one adapter."""

    adapter: Adapter
    tokens_n: torch.Tensor | None
    """Their places in the step; None: all."""


class StepAdapters:
    """What is added to the products of one step."""

    def __init__(self, groups: Sequence[AdapterTokens]) -> None:
        self._groups = groups

    def add(self, layer: int, part: LinearName, x_TK: torch.Tensor, out_TN: torch.Tensor) -> None:
        """Add each adapter's part to the product of its own tokens, in place."""
        for group in self._groups:
            low_rank = group.adapter.layers.get((layer, part))
            if low_rank is None:
                continue
            if group.tokens_n is None:
                out_TN.add_(low_rank.second(low_rank.first(x_TK)))
            else:
                x_nK = x_TK.index_select(0, group.tokens_n)
                out_TN.index_add_(0, group.tokens_n, low_rank.second(low_rank.first(x_nK)))
