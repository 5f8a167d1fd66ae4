"""A matrix product with a weight that can be updated in place."""

from __future__ import annotations

import torch


class Linear:
    """``out = x @ weight.T + bias``. Nothing derived from the weight is kept, so an update needs no call here."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        self._weight_KN = weight_NK.t()
        self._bias_N = bias_N

    def __call__(self, x_TK: torch.Tensor, out_TN: torch.Tensor) -> None:
        """Write [T, N] into ``out_TN``."""
        if self._bias_N is None:
            torch.mm(x_TK, self._weight_KN, out=out_TN)
        else:
            torch.addmm(self._bias_N, x_TK, self._weight_KN, out=out_TN)
