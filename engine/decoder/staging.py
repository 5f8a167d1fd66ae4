"""A whole set of weights beside the one that is computed with, ready to be swapped in.

::

    tensors ─┬─► panels of their own ───► exchanged for those that are computed with, which the next version gets
             └─► the few that are in none ─► copied into place
                       any thread                            between two steps

Where no matrix lies in panels, as on a GPU or on several ranks, all are copied into place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from rlserve.engine.decoder.named_weight import NamedWeight, PanelWeight
from rlserve.engine.weights.fingerprint import (
    fingerprint_of_sum,
    named_fingerprint,
    tensor_fingerprint,
    total_fingerprint,
)
from rlserve.native.panels import put_all


@dataclass(frozen=True, kw_only=True, eq=False)
class StagedWeights:
    """A whole set of weights that was checked."""

    fingerprint: int
    """Of all of them."""
    tensors: Mapping[str, torch.Tensor]
    """By name, those that are to be copied into place."""
    panels: tuple[torch.Tensor, ...] | None
    """To be exchanged for those that are computed with, in their order; None: there are none."""


def stage_in_panels(
    weights: Iterable[tuple[str, NamedWeight, torch.Tensor]],
    panels: tuple[torch.Tensor, ...],
    beside: tuple[torch.Tensor, ...],
) -> StagedWeights:
    """Write all that lies in ``panels`` to the panels ``beside`` them, and copy the rest.

    Args:
        weights: name, weight, and what it is to be.
        beside: as many as ``panels``, of the same shapes.
    """
    twins = {id(mine): twin for mine, twin in zip(panels, beside, strict=True)}
    copies, labels, rest, dtype = [], [], {}, panels[0].dtype
    for name, weight, tensor in weights:
        if isinstance(weight, PanelWeight):
            copies.append((twins[id(weight.panels)], weight.first_row, tensor.detach()))
            labels.append((name, weight.shape))
        else:
            rest[name] = tensor.detach().to(device="cpu", dtype=dtype, copy=True)
    named = [
        named_fingerprint(name, shape, dtype, fingerprint_of_sum(total))
        for (name, shape), total in zip(labels, put_all(copies), strict=True)
    ]
    named += [named_fingerprint(name, tensor.shape, dtype, tensor_fingerprint(tensor)) for name, tensor in rest.items()]
    return StagedWeights(fingerprint=total_fingerprint(named), tensors=rest, panels=beside)
