"""An adapter as it is computed with, and which tokens of a step it is for.

Legend: T tokens and S sequences of a step, n tokens with one adapter, K inputs, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.native.decoder_program import LinearName
from rlserve.native.low_rank import LowRankTable

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
    layers: AdapterLayers | LowRankTable
    """As the decoder computes: by single operations, or in compiled programs."""


NO_ADAPTER_ID = 0
"""In place of an adapter's id, for the model alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterTokens:
    """The tokens of a step that have one adapter."""

    adapter: Adapter
    tokens_n: torch.Tensor
    """Their places in the step."""


class StepAdapters:
    """What is added to the products of one step.

    ::

        tokens  0 a 1 b 2 a 3 – ──► a: 0 2 │ b: 1 │ one row of zeros ──rows_T: 0 2 1 3──► added to 0 1 2 3

    One gather puts the parts of all adapters in place, which takes a fraction of adding each to its own rows.
    """

    def __init__(self, ids_S: NDArray[np.int64], groups: Sequence[AdapterTokens], rows_T: torch.Tensor | None) -> None:
        """
        Args:
            ids_S: the adapter of each sequence of the step.
            rows_T: of each token, its row among those of all groups, one after the other, and the zeros behind them;
                None where all tokens have one adapter.
        """
        self.ids_S = ids_S
        self.groups = groups
        self._rows_T = rows_T

    def add(self, layer: int, part: LinearName, x_TK: torch.Tensor, out_TN: torch.Tensor) -> None:
        """Add each adapter's part to the product of its own tokens, in place."""
        low_ranks = []
        for group in self.groups:
            assert not isinstance(group.adapter.layers, LowRankTable)
            low_ranks.append(group.adapter.layers.get((layer, part)))
        if self._rows_T is None:
            (low_rank,) = low_ranks
            if low_rank is not None:
                out_TN.add_(low_rank.second(low_rank.first(x_TK)))
            return
        if not any(low_ranks):
            return
        added = [
            out_TN.new_zeros(len(group.tokens_n), out_TN.shape[1])
            if low_rank is None
            else low_rank.second(low_rank.first(x_TK.index_select(0, group.tokens_n)))
            for group, low_rank in zip(self.groups, low_ranks, strict=True)
        ]
        added.append(out_TN.new_zeros(1, out_TN.shape[1]))
        out_TN.add_(torch.cat(added).index_select(0, self._rows_T))
