"""An adapter on its way from rank 0 to the others: which matrices there are, as words, then those of each layer.

    words   layer, module, rank │ layer, module, rank │ …
    tensors A B A B … of layer 0 │ A B … of layer 1 │ …      whole, in the engine's type

Each rank cuts its own part out of them, as of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from rlserve.engine.adapters.folder import AdapterMatrices, Pair, sizes_of
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.parallel.base import RankGroup

_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def words_of(matrices: AdapterMatrices) -> list[int]:
    """What :func:`receive_matrices` has to know."""
    words: list[int] = []
    for layer, module in _places(matrices):
        words += [layer, _MODULES.index(module), len(matrices[layer, module].first)]
    return words


def send_matrices(group: RankGroup, matrices: AdapterMatrices, like: torch.Tensor) -> None:
    """Rank 0 alone. ``like`` has the type and the device of the engine."""
    for _, places in groupby(_places(matrices), key=lambda place: place[0]):
        pairs = [matrices[place] for place in places]
        group.broadcast(torch.cat([each.to(like).flatten() for pair in pairs for each in (pair.first, pair.second)]))


def receive_matrices(group: RankGroup, words: Sequence[int], spec: ModelSpec, like: torch.Tensor) -> AdapterMatrices:
    """All others. ``spec`` is that of the whole model."""
    matrices: dict[tuple[int, str], Pair] = {}
    for layer, places in groupby(zip(words[::3], words[1::3], words[2::3], strict=True), key=lambda place: place[0]):
        shapes = {}
        for _, module, rank in places:
            num_inputs, num_outputs = sizes_of(spec, layer)[_MODULES[module]]
            shapes[_MODULES[module]] = ((rank, num_inputs), (num_outputs, rank))
        sizes = [rows * columns for both in shapes.values() for rows, columns in both]
        flat = like.new_empty(sum(sizes))
        group.broadcast(flat)
        parts = iter(torch.split(flat, sizes))
        for module_name, (first, second) in shapes.items():
            matrices[layer, module_name] = Pair(first=next(parts).view(first), second=next(parts).view(second))
    return matrices


def _places(matrices: AdapterMatrices) -> list[tuple[int, str]]:
    """In the order in which they are sent."""
    return sorted(matrices, key=lambda place: (place[0], _MODULES.index(place[1])))
