"""The small operations as compiled C++: at the sizes of small models a PyTorch call costs more than its work.

Legend as in ``base.py``.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from rlserve.engine.kernels.base import Kernels, SampledTokens, SamplingBatch
from rlserve.native.library import load_library


class CpuKernels(Kernels):
    """Compiled kernels; float32 and bfloat16, contiguous tensors only."""

    def __init__(self) -> None:
        library = load_library()
        self._add_rms_norm = _by_dtype(library, "add_rms_norm")
        self._silu_mul = _by_dtype(library, "silu_mul")
        self._gelu_tanh_mul = _by_dtype(library, "gelu_tanh_mul")
        self._sample = _by_dtype(library, "sample")

    def rms_norm(
        self, hidden_TH: torch.Tensor, weight_H: torch.Tensor, out_TH: torch.Tensor, eps: float, offset: float = 0.0
    ) -> None:
        num_tokens, size = hidden_TH.shape
        self._add_rms_norm[hidden_TH.dtype](
            hidden_TH.data_ptr(),
            None,
            weight_H.data_ptr(),
            out_TH.data_ptr(),
            num_tokens,
            size,
            eps,
            offset,
            torch.get_num_threads(),
        )

    def add_rms_norm(
        self,
        residual_TH: torch.Tensor,
        update_TH: torch.Tensor,
        weight_H: torch.Tensor,
        out_TH: torch.Tensor,
        eps: float,
        offset: float = 0.0,
    ) -> None:
        num_tokens, size = residual_TH.shape
        self._add_rms_norm[residual_TH.dtype](
            residual_TH.data_ptr(),
            update_TH.data_ptr(),
            weight_H.data_ptr(),
            out_TH.data_ptr(),
            num_tokens,
            size,
            eps,
            offset,
            torch.get_num_threads(),
        )

    def silu_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        num_tokens, size = out_TI.shape
        self._silu_mul[out_TI.dtype](
            gate_up_T2I.data_ptr(), out_TI.data_ptr(), num_tokens, size, torch.get_num_threads()
        )

    def gelu_tanh_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        num_tokens, size = out_TI.shape
        self._gelu_tanh_mul[out_TI.dtype](
            gate_up_T2I.data_ptr(), out_TI.data_ptr(), num_tokens, size, torch.get_num_threads()
        )

    def sample(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> SampledTokens:
        assert logits_RV.is_contiguous()
        sampled = SampledTokens(
            token_ids=np.empty(batch.size, dtype=np.int32),
            log_probs=np.empty(batch.size, dtype=np.float32),
            behaviour_log_probs=np.empty(batch.size, dtype=np.float32),
            kept=np.empty((batch.size, logits_RV.shape[1]), dtype=np.bool_) if batch.wants_kept else None,
        )
        self._sample[logits_RV.dtype](
            logits_RV.data_ptr(),
            logits_RV.shape[1],
            batch.size,
            batch.logits_row.ctypes.data,
            batch.temperature.ctypes.data,
            batch.top_k.ctypes.data,
            batch.top_p.ctypes.data,
            batch.min_p.ctypes.data,
            batch.uniform.ctypes.data,
            None if batch.allowed is None else batch.allowed.ctypes.data,
            0 if batch.allowed is None else batch.allowed.shape[1],
            sampled.token_ids.ctypes.data,
            sampled.log_probs.ctypes.data,
            sampled.behaviour_log_probs.ctypes.data,
            None if sampled.kept is None else sampled.kept.ctypes.data,
            torch.get_num_threads(),
        )
        return sampled


def _by_dtype(library: ctypes.CDLL, name: str) -> dict[torch.dtype, Any]:
    return {
        torch.float32: getattr(library, f"{name}_float32"),
        torch.bfloat16: getattr(library, f"{name}_bfloat16"),
    }
