"""A whole set of weights beside the one that is computed with, ready to be swapped in.

::

    tensors ─┬─► memory like that which is computed with ─► exchanged for it; the next version gets that
             └─► the few that do not lie in panels ───────► copied into place
                              any thread                            between two steps

Where nothing is in panels, on a CPU all are exchanged, and what oneDNN packs of them is packed ahead. On a GPU, on
several ranks and with experts all are copied into place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from rlserve.engine.decoder.named_weight import NamedWeight, PanelWeight, PlainWeight
from rlserve.engine.weights.fingerprint import (
    copied_fingerprints,
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
    beside: tuple[torch.Tensor, ...] | None
    """To be exchanged for what is computed with, in its order; None: nothing is exchanged."""
    packed_ahead: tuple[torch.Tensor | None, ...] = ()
    """Of what is to be exchanged, by matrix product, what oneDNN packs."""


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
    return StagedWeights(fingerprint=total_fingerprint(named), tensors=rest, beside=beside)


def stage_in_rows(
    weights: Iterable[tuple[str, NamedWeight, torch.Tensor]],
    fused: tuple[torch.Tensor, ...],
    beside: tuple[torch.Tensor, ...],
) -> StagedWeights:
    """Write all to the tensors ``beside`` the fused ones.

    Args:
        weights: name, weight, and what it is to be.
        beside: as many as ``fused``, of the same shapes.
    """
    twins = {id(mine): twin for mine, twin in zip(fused, beside, strict=True)}
    names, copies = [], []
    for name, weight, tensor in weights:
        assert isinstance(weight, PlainWeight)
        names.append(name)
        copies.append((tensor.detach(), weight.rows_of(twins[id(weight.fused)])))
    named = [
        named_fingerprint(name, rows.shape, rows.dtype, of_rows)
        for name, (_, rows), of_rows in zip(names, copies, copied_fingerprints(copies), strict=True)
    ]
    return StagedWeights(fingerprint=total_fingerprint(named), tensors={}, beside=beside)
