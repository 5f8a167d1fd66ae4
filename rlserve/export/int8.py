"""Weights rounded to int8, in the format ``int-quantized`` of compressed-tensors, which vLLM and transformers load.

Every product but the head's keeps its weight [out, in] as int8 with a scale for each output, so that weight ≈ scale ×
integer. Whoever loads it rounds activations to int8 as well, with a scale for each token, found as they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlserve.errors import UserError

_LARGEST = 127
_HEAD = "lm_head"
QUANTISATION_CONFIG: Mapping[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": [_HEAD],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "format": "int-quantized",
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
"""``quantization_config`` of the model's ``config.json``."""


def quantised_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights of a model, those of its products but the head's as ``NAME.weight`` in int8 and ``NAME.weight_scale``
    [out, 1] in the type that they had.

    Raises:
        UserError: experts that are computed together have no such format.
    """
    weights: dict[str, Tensor] = dict(model.state_dict())
    fused = [name for name, weight in weights.items() if weight.ndim == 3]
    if fused:
        raise UserError(f"experts cannot be exported as int8, such as {fused[0]}: leave --quantise out")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != _HEAD:
            weights[f"{name}.weight"], weights[f"{name}.weight_scale"] = quantise(module.weight.detach())
    return weights


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [out, in] and scales [out, 1] of a weight [out, in]. The integers are of the scales as they are kept, in
    the weight's own type, so rounding a scale costs nothing."""
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    # The smallest normal number keeps rows of zeros, and scales that would be 0 in a narrow type, from dividing by it.
    scale = (largest / _LARGEST).clamp(min=torch.finfo(weight.dtype).tiny).to(weight.dtype)
    integers = (weight.float() / scale.float()).round().clamp(-_LARGEST, _LARGEST)
    return integers.to(torch.int8), scale
