"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): decoder layers that are computed again where the
backward pass comes to them, so that of the forward pass only their inputs are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_layers(network: Any) -> None:
    """Let every decoder layer of a policy, reference or critic's backbone be recomputed in the backward pass. Modules,
    parameters and their names stay; only the layers' class changes, in this network alone."""
    for layer in network.base_model.layers:
        before = type(layer)
        layer.__class__ = type(f"Recomputed{before.__name__}", (RecomputedLayer, before), {})


class RecomputedLayer(nn.Module):
    """Comes before the class of a layer."""

    def forward(self, *args: Any, **options: Any) -> Any:
        """As the layer itself. It draws no random numbers, since dropout is off."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **options)
        return checkpoint(super().forward, *args, use_reentrant=False, preserve_rng_state=False, **options)
