"""Which part of a model one rank holds, and how whole weights are cut into parts and joined again. Pure.

The split is that of Megatron-LM (arXiv 1909.08053): a layer needs two sums over the ranks, one after the output
projection of attention and one after the down projection of the MLP.

    queries, keys, values     rows, so whole heads. Fewer key-value heads than ranks: neighbours hold the same one.
    output, down              columns; their biases lie on the first rank alone, so that the sum has them once.
    gate, up                  rows; those of each expert likewise
    embedding, head           rows, so tokens of the vocabulary
    norms, router             whole on every rank
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.divisibility import check_divides

_ROWS = re.compile(r"(\.[qkv]_proj|\.gate_proj|\.up_proj)\.(weight|bias)$|^(model\.embed_tokens|lm_head)\.weight$")
_KEY_VALUE = re.compile(r"\.[kv]_proj\.")
_COLUMNS = re.compile(r"\.(o_proj|down_proj)\.weight$")
_ON_FIRST_RANK = re.compile(r"\.(o_proj|down_proj)\.bias$")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part ``index`` of ``count`` equal ones along a dimension."""

    dimension: int
    index: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of one rank. With one rank everything is whole."""

    whole: ModelSpec
    own: ModelSpec
    """The model as this rank computes it: fewer heads, a narrower MLP, a part of the vocabulary."""
    rank: int
    num_ranks: int

    @classmethod
    def of(cls, spec: ModelSpec, rank: int = 0, num_ranks: int = 1) -> Shard:
        """The part of ``rank``.

        Raises:
            UserError: a size of the model does not divide by the number of ranks.
        """
        check_divides(spec, num_ranks)
        experts = spec.experts
        own = replace(
            spec,
            vocab_size=spec.vocab_size // num_ranks,
            intermediate_size=spec.intermediate_size // num_ranks,
            num_heads=spec.num_heads // num_ranks,
            num_kv_heads=max(spec.num_kv_heads // num_ranks, 1),
            experts=experts and replace(experts, intermediate_size=experts.intermediate_size // num_ranks),
        )
        return cls(whole=spec, own=own, rank=rank, num_ranks=num_ranks)

    @property
    def first_token_id(self) -> int:
        """The first token of this rank's part of the vocabulary."""
        return self.rank * self.own.vocab_size

    def is_split(self, name: str) -> bool:
        """Whether the weight is cut; if not, the first rank has all of it."""
        return self._part(name) is not None

    def whole_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the weight of which this rank holds a part of ``shape``."""
        part = self._part(name)
        return tuple(size * (part.count if part and part.dimension == place else 1) for place, size in enumerate(shape))

    def cut(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a weight, as a view; zeros where another rank holds it."""
        part = self._part(name)
        if part is None:
            return whole.new_zeros(whole.shape) if self._is_elsewhere(name) else whole
        size = whole.shape[part.dimension] // part.count
        return whole.narrow(part.dimension, part.index * size, size)

    def join(self, name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The whole weight, from the parts of all ranks in order; undoes :meth:`cut`."""
        part = self._part(name)
        return parts[0] if part is None else torch.cat(list(parts[:: self.num_ranks // part.count]), part.dimension)

    def own_elements(
        self, name: str, own_shape: Sequence[int], indices_C: torch.Tensor
    ) -> tuple[torch.Tensor | slice, torch.Tensor]:
        """Of elements of the flattened whole weight: which of the C this rank holds, and where in its own
        flattened part those lie."""
        part = self._part(name)
        if part is None:
            is_own: torch.Tensor | slice = slice(0, 0 if self._is_elsewhere(name) else len(indices_C))
            return is_own, indices_C[is_own]
        # The dimensions before, at and after the cut: whole [before, count * size, after], own [before, size, after].
        size, after = own_shape[part.dimension], torch.Size(own_shape[part.dimension + 1 :]).numel()
        place_C = indices_C // after % (part.count * size) - part.index * size
        is_own = (place_C >= 0) & (place_C < size)
        before_C = indices_C // (after * part.count * size)
        return is_own, ((before_C * size + place_C) * after + indices_C % after)[is_own]

    def _part(self, name: str) -> Part | None:
        if self.num_ranks == 1:
            return None
        if _COLUMNS.search(name):
            return Part(dimension=1, index=self.rank, count=self.num_ranks)
        if not _ROWS.search(name):
            return None
        count = min(self.num_ranks, self.whole.num_kv_heads) if _KEY_VALUE.search(name) else self.num_ranks
        return Part(dimension=0, index=self.rank * count // self.num_ranks, count=count)

    def _is_elsewhere(self, name: str) -> bool:
        return self.rank > 0 and _ON_FIRST_RANK.search(name) is not None
