"""A matrix product with a weight that can be updated in place.

Large weights are also kept in oneDNN's own order, which saves it reordering them in every product: 1.1 to 2
times as fast for 8 to 64 rows. The copy is made anew after an update, which costs more than a plain copy, or
beforehand, of a weight that is staged beside the one that is computed with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

PACK_FROM = 2**17
"""Elements of the smallest weight that is packed; below, the call costs more than the order saves."""

ROW_BLOCK = 32
"""Rows of a product in deterministic mode: fewer make prompts slow, more make the decoding of few samples slow."""


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's torch has packed products for the type."""
    if not torch._C._has_mkldnn:
        return False
    return dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear:
    """``x @ weight.T + bias``. Legend: T tokens, K inputs, N outputs."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        self._weight_NK = weight_NK
        self._weight_KN = weight_NK.t()
        self._bias_N = bias_N
        is_large = weight_NK.numel() >= PACK_FROM
        self._is_packed = is_large and weight_NK.device.type == "cpu" and can_pack(weight_NK.dtype)
        self._packed: torch.Tensor | None = None
        self._packed_ahead: torch.Tensor | None = None

    def packed_ahead(self, beside: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
        """What :meth:`exchanged` takes. Any thread may call it.

        Args:
            beside: the weight that is to be computed with instead, by the id of the one now.
        """
        if not self._is_packed:
            return None
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(beside[id(self._weight_NK)])
        return packed

    def exchanged(self, packed_ahead: torch.Tensor | None) -> None:
        """The weight's memory was exchanged for what was packed ahead; :meth:`weight_changed` follows."""
        self._packed_ahead = packed_ahead

    def weight_changed(self) -> None:
        """Must be called after the weight was written to or exchanged, before the next product."""
        self._weight_KN = self._weight_NK.t()
        if self._is_packed:
            self._packed, self._packed_ahead = self._packed_ahead, None  # the old copy goes before the new one comes
            if self._packed is None:
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight_NK)

    def weight_released(self) -> None:
        """Forget the copy of a weight whose memory is freed."""
        self._packed = None

    def __call__(self, x_TK: torch.Tensor, out_TN: torch.Tensor) -> torch.Tensor:
        """The product [T, N]: written to ``out_TN`` and that returned, or a new tensor."""
        if self._is_packed:
            assert self._packed is not None, "the weight was never filled"
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, self._packed, self._bias_N, "none", [], "")
            return product
        if self._bias_N is None:
            return torch.mm(x_TK, self._weight_KN, out=out_TN)
        return torch.addmm(self._bias_N, x_TK, self._weight_KN, out=out_TN)


class RowBlockLinear(Linear):
    """The same product in blocks of always ``ROW_BLOCK`` rows, the last filled up with zeros: a row has the same
    bits whatever rows there are beside it. A product picks its order of summation by the number of rows."""

    def __call__(self, x_TK: torch.Tensor, out_TN: torch.Tensor) -> torch.Tensor:
        # Work space of its own, because the order may hang on the alignment of the memory too.
        block_RK, product_RN = x_TK.new_zeros(ROW_BLOCK, x_TK.shape[1]), out_TN.new_empty(ROW_BLOCK, out_TN.shape[1])
        for start in range(0, len(x_TK), ROW_BLOCK):
            rows_TK = x_TK[start : start + ROW_BLOCK]
            block_RK[: len(rows_TK)] = rows_TK
            block_RK[len(rows_TK) :] = 0
            out_TN[start : start + ROW_BLOCK] = super().__call__(block_RK, product_RN)[: len(rows_TK)]
        return out_TN
