"""The small operations as Triton programs, each one pass over its data; what has none here is plain PyTorch.

Legend as in ``base.py``; C chunks of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
import triton

from rlserve.engine.device.transfer import upload
from rlserve.engine.kernels.base import Draw, SampledTokens, SamplingBatch
from rlserve.engine.kernels.device_draw import DeviceDraw
from rlserve.engine.kernels.torch_kernels import TorchKernels
from rlserve.engine.kernels.triton_programs import add_rms_norm, draw_tokens, gated_activation, weigh_chunks

_CHUNK = 4096
"""Logits that one program weighs."""
_ACTIVATION_BLOCK = 1024


class TritonKernels(TorchKernels):
    """Contiguous tensors on a GPU (or on the CPU, in Triton's interpreter)."""

    def rms_norm(
        self, hidden_TH: torch.Tensor, weight_H: torch.Tensor, out_TH: torch.Tensor, eps: float, offset: float = 0.0
    ) -> None:
        _launch_norm(hidden_TH, None, weight_H, out_TH, eps, offset)

    def add_rms_norm(
        self,
        residual_TH: torch.Tensor,
        update_TH: torch.Tensor,
        weight_H: torch.Tensor,
        out_TH: torch.Tensor,
        eps: float,
        offset: float = 0.0,
    ) -> None:
        _launch_norm(residual_TH, update_TH, weight_H, out_TH, eps, offset)

    def silu_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        _launch_activation(gate_up_T2I, out_TI, is_gelu=False)

    def gelu_tanh_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        _launch_activation(gate_up_T2I, out_TI, is_gelu=True)

    def sample(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> SampledTokens:
        return self.draw(logits_RV, batch).read() if batch.keeps_all else super().sample(logits_RV, batch)

    def draw(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> Draw:
        if not batch.keeps_all:
            return super().draw(logits_RV, batch)
        arrays = (batch.logits_row, batch.temperature, batch.uniform.astype(np.float32))
        return DeviceDraw(draw(logits_RV, *upload(arrays, logits_RV.device)))


def draw(
    logits_RV: torch.Tensor, rows_B: torch.Tensor, temperature_B: torch.Tensor, uniform_B: torch.Tensor
) -> torch.Tensor:
    """Draw from whole rows without waiting for the device: [3, B] int32, for ``DeviceDraw``. Arguments as in
    ``SamplingBatch``, on the device and of 4 bytes."""
    vocab_size, num_draws = logits_RV.shape[1], len(rows_B)
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    sums_3BC = torch.empty(3, num_draws, num_chunks, dtype=torch.float32, device=logits_RV.device)
    best_BC = torch.empty(num_draws, num_chunks, dtype=torch.int32, device=logits_RV.device)
    parts = (*sums_3BC.unbind(), best_BC)
    sizes = {"NUM_CHUNKS": num_chunks, "VOCAB": vocab_size, "CHUNK": _CHUNK}
    weigh_chunks[num_draws, num_chunks](logits_RV, rows_B, temperature_B, *parts, **sizes)
    packed_3B = torch.empty(3, num_draws, dtype=torch.int32, device=logits_RV.device)
    draw_tokens[num_draws,](
        logits_RV,
        rows_B,
        temperature_B,
        uniform_B,
        *parts,
        packed_3B[0],
        *packed_3B[1:].view(torch.float32).unbind(),
        CHUNKS_BLOCK=triton.next_power_of_2(num_chunks),
        **sizes,
    )
    return packed_3B


def _launch_norm(
    hidden_TH: torch.Tensor,
    update_TH: torch.Tensor | None,
    weight_H: torch.Tensor,
    out_TH: torch.Tensor,
    eps: float,
    offset: float,
) -> None:
    num_tokens, size = hidden_TH.shape
    block = triton.next_power_of_2(size)
    add_rms_norm[num_tokens,](
        hidden_TH,
        update_TH,
        weight_H,
        out_TH,
        eps,
        SIZE=size,
        BLOCK=block,
        HAS_UPDATE=update_TH is not None,
        OFFSET=offset,
        num_warps=max(1, min(16, block // 512)),
    )


def _launch_activation(gate_up_T2I: torch.Tensor, out_TI: torch.Tensor, *, is_gelu: bool) -> None:
    num_tokens, size = out_TI.shape
    grid = num_tokens, triton.cdiv(size, _ACTIVATION_BLOCK)
    gated_activation[grid](gate_up_T2I, out_TI, SIZE=size, BLOCK=_ACTIVATION_BLOCK, IS_GELU=is_gelu)
