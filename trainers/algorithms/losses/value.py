"""The loss of the critic."""

from __future__ import annotations

import torch
from torch import Tensor

from rlserve.trainers.algorithms.losses.base import LossTerm


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float) -> LossTerm:
    """Half the squared error, the larger of plain and with the value kept within ``value_clip`` of the old one."""
    near_old = old_values + (values - old_values).clamp(-value_clip, value_clip)
    unclipped = (values - returns).square()
    clipped = (near_old - returns).square()
    return LossTerm(per_token=0.5 * torch.maximum(unclipped, clipped), is_clipped=clipped > unclipped)
