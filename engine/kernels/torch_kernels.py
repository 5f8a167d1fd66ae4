"""The small operations in plain PyTorch: the reference, and what runs where no compiler is.

Legend as in ``base.py``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rlserve.engine.device.transfer import to_device
from rlserve.engine.kernels.base import Draw, Kernels, SampledTokens, SamplingBatch
from rlserve.engine.kernels.device_draw import DeviceDraw, pack

_BITS = torch.tensor([*(1 << bit for bit in range(31)), -(1 << 31)], dtype=torch.int32)


class TorchKernels(Kernels):
    """Plain PyTorch."""

    def rms_norm(
        self, hidden_TH: torch.Tensor, weight_H: torch.Tensor, out_TH: torch.Tensor, eps: float, offset: float = 0.0
    ) -> None:
        wide = hidden_TH.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
        if offset:  # models with an offset multiply before they round
            out_TH.copy_(normed * (weight_H.float() + offset))
        else:
            torch.mul(normed.to(hidden_TH.dtype), weight_H, out=out_TH)

    def add_rms_norm(
        self,
        residual_TH: torch.Tensor,
        update_TH: torch.Tensor,
        weight_H: torch.Tensor,
        out_TH: torch.Tensor,
        eps: float,
        offset: float = 0.0,
    ) -> None:
        residual_TH.add_(update_TH)
        self.rms_norm(residual_TH, weight_H, out_TH, eps, offset)

    def silu_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        torch.mul(F.silu(gate_TI), up_TI, out=out_TI)

    def gelu_tanh_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        torch.mul(F.gelu(gate_TI, approximate="tanh"), up_TI, out=out_TI)

    def sample(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> SampledTokens:
        packed_3B, kept_BV = self._draw(logits_RV, batch)
        sampled = DeviceDraw(packed_3B).read()
        return sampled if kept_BV is None else replace(sampled, kept=kept_BV.cpu().numpy())

    def draw(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> Draw:
        return DeviceDraw(self._draw(logits_RV, batch)[0])

    def _draw(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Packed [3, B], and the kept tokens [B, V] where they are wanted."""
        device = logits_RV.device
        logits_BV = logits_RV.float()[to_device(batch.logits_row, device).long()]
        raw_BV = logits_BV.log_softmax(dim=-1)
        if batch.allowed is not None:
            logits_BV = logits_BV.masked_fill(forbidden_tokens(batch.allowed, logits_BV.shape[1], device), -torch.inf)
        temperature_B = to_device(batch.temperature, device)
        greedy_B = temperature_B == 0
        temperature_B1 = temperature_B.masked_fill(greedy_B, 1.0).unsqueeze(1)
        scaled_BV = logits_BV / temperature_B1
        if (batch.min_p > 0).any():
            scaled_BV = _keep_min_p(scaled_BV, to_device(batch.min_p, device))
        if (batch.top_k > 0).any():
            scaled_BV = _keep_top_k(scaled_BV, to_device(batch.top_k, device))
        if (batch.top_p < 1).any():
            scaled_BV = _keep_top_p(scaled_BV, to_device(batch.top_p, device))
        behaviour_BV = scaled_BV.log_softmax(dim=-1)
        cumulative_BV = behaviour_BV.double().exp().cumsum(dim=-1)
        total_B1 = cumulative_BV[:, -1:]
        # Rounding must not put the target on the total: the search would end behind the last kept token.
        target_B1 = torch.minimum(
            to_device(batch.uniform, device).unsqueeze(1) * total_B1, total_B1.nextafter(torch.zeros_like(total_B1))
        )
        drawn_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)
        # Only logits that are not finite lead past the end.
        token_B = torch.where(greedy_B, logits_BV.argmax(dim=-1), drawn_B.clamp_(max=logits_BV.shape[1] - 1))
        chosen_B1 = token_B.unsqueeze(1)
        behaviour_B = behaviour_BV.gather(1, chosen_B1).squeeze(1).masked_fill(greedy_B, 0.0)
        packed_3B = pack(token_B, raw_BV.gather(1, chosen_B1).squeeze(1), behaviour_B)
        return packed_3B, _kept(behaviour_BV, greedy_B, token_B) if batch.wants_kept else None


def forbidden_tokens(allowed_BW: NDArray[np.int32], vocab_size: int, device: torch.device) -> torch.Tensor:
    """[B, V] bool: the tokens whose bits are not set. A device gets the words and takes the bits out of them itself."""
    if device.type == "cpu":
        bits_BV = np.unpackbits(~allowed_BW.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits_BV.view(np.bool_))
    bits_BW32 = to_device(allowed_BW, device).unsqueeze(-1).bitwise_and(_BITS.to(device))
    return bits_BW32.eq(0).flatten(1)[:, :vocab_size]


def _kept(behaviour_BV: torch.Tensor, greedy_B: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    """[B, V] the tokens that could have been drawn."""
    kept_BV = behaviour_BV > -torch.inf
    kept_BV[greedy_B] = False
    return kept_BV.scatter_(1, token_B.unsqueeze(1), True)


def _keep_min_p(logits_BV: torch.Tensor, min_p_B: torch.Tensor) -> torch.Tensor:
    """Set all less likely than p times the likeliest to minus infinity; rows with p = 0 stay whole."""
    threshold_B1 = logits_BV.amax(dim=-1, keepdim=True) + min_p_B.log().unsqueeze(1)
    return logits_BV.masked_fill(logits_BV < threshold_B1, -torch.inf)


def _keep_top_k(logits_BV: torch.Tensor, top_k_B: torch.Tensor) -> torch.Tensor:
    """Set all below the k-th likeliest to minus infinity; rows with k = 0 stay whole."""
    num_tokens = logits_BV.shape[1]
    k_B = torch.where(top_k_B > 0, top_k_B.long().clamp(max=num_tokens), num_tokens)
    sorted_BV = logits_BV.sort(dim=-1, descending=True).values
    threshold_B1 = sorted_BV.gather(1, (k_B - 1).unsqueeze(1))
    return logits_BV.masked_fill(logits_BV < threshold_B1, -torch.inf)


def _keep_top_p(logits_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches p; rows with p = 1 stay whole."""
    sorted_BV = logits_BV.sort(dim=-1, descending=True).values
    before_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
    before_BV[:, 0] = 0.0
    num_kept_B1 = (before_BV < top_p_B.unsqueeze(1)).sum(dim=-1, keepdim=True)
    threshold_B1 = sorted_BV.gather(1, num_kept_B1 - 1)
    threshold_B1[top_p_B >= 1] = -torch.inf
    return logits_BV.masked_fill(logits_BV < threshold_B1, -torch.inf)
