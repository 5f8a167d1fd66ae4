"""The contract of the small fused operations.

Legend: T tokens, H hidden size, I intermediate size, R rows of logits, V vocabulary, B samples to draw,
W words of 32 bits that hold V bits or more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rlserve.engine.device.transfer import to_device


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingBatch:
    """How to draw B tokens; several may come from the same row of logits (the samples of one prompt)."""

    logits_row: NDArray[np.int32]
    """[B] the row of logits of each draw."""
    temperature: NDArray[np.float32]
    """[B]; 0 takes the likeliest token."""
    top_k: NDArray[np.int32]
    """[B]; 0 keeps all."""
    top_p: NDArray[np.float32]
    """[B]; 1 keeps all."""
    min_p: NDArray[np.float32]
    """[B]; 0 keeps all."""
    uniform: NDArray[np.float64]
    """[B] one random number in (0, 1) each."""
    allowed: NDArray[np.int32] | None = None
    """[B, W] one bit a token, lowest first: whether it may be drawn; at least one of each draw may. None allows all."""
    wants_kept: bool = False
    """Whether to tell which tokens each draw could have given."""

    @property
    def size(self) -> int:
        """B."""
        return len(self.logits_row)

    @property
    def keeps_all(self) -> bool:
        """Whether every token may be drawn, and nothing is wanted but the draw: then no row must be sorted."""
        narrows = (self.top_k > 0).any() or (self.top_p < 1).any() or (self.min_p > 0).any()
        return not narrows and not self.wants_kept and self.allowed is None

    def take(self, draws: NDArray[np.intp]) -> SamplingBatch:
        """Some of the draws of a batch that allows all tokens."""
        return SamplingBatch(
            logits_row=self.logits_row[draws],
            temperature=self.temperature[draws],
            top_k=self.top_k[draws],
            top_p=self.top_p[draws],
            min_p=self.min_p[draws],
            uniform=self.uniform[draws],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledTokens:
    """What was drawn."""

    token_ids: NDArray[np.int32]
    """[B], always inside the vocabulary."""
    log_probs: NDArray[np.float32]
    """[B] raw: temperature 1, whole vocabulary. Not finite where the logits were not."""
    behaviour_log_probs: NDArray[np.float32]
    """[B] under the distribution drawn from; 0 for greedy choices."""
    kept: NDArray[np.bool_] | None = None
    """[B, V] the tokens that could have been drawn, if asked for; the chosen one alone for greedy choices."""


class Draw(Protocol):
    """Tokens that the device has been told to draw, and may not have drawn yet."""

    @property
    def token_ids_B(self) -> torch.Tensor:
        """[B] int32 on the device, for what is launched behind the draw."""
        ...

    def read(self) -> SampledTokens:
        """The tokens; waits until the device has drawn them, and not for what was launched since."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedDraw:
    """A draw that was waited for when it was made."""

    sampled: SampledTokens
    device: torch.device

    @property
    def token_ids_B(self) -> torch.Tensor:
        """[B] int32 on the device."""
        return to_device(self.sampled.token_ids, self.device)

    def read(self) -> SampledTokens:
        """The tokens."""
        return self.sampled


class Kernels(ABC):
    """Operations of one device. Outputs are given by the caller, nothing is allocated per step."""

    @abstractmethod
    def rms_norm(
        self, hidden_TH: torch.Tensor, weight_H: torch.Tensor, out_TH: torch.Tensor, eps: float, offset: float = 0.0
    ) -> None:
        """``out = hidden / sqrt(mean(hidden ** 2) + eps) * (weight + offset)``, in float32 inside
        (arXiv 1910.07467). ``out`` may be ``hidden``."""

    @abstractmethod
    def add_rms_norm(
        self,
        residual_TH: torch.Tensor,
        update_TH: torch.Tensor,
        weight_H: torch.Tensor,
        out_TH: torch.Tensor,
        eps: float,
        offset: float = 0.0,
    ) -> None:
        """``residual += update`` in place, then ``out = rms_norm(residual)``."""

    @abstractmethod
    def silu_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        """SwiGLU: ``out = silu(gate) * up``; gate is the first half of the columns (arXiv 2002.05202)."""

    @abstractmethod
    def gelu_tanh_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        """The same with GELU, approximated by the hyperbolic tangent (arXiv 1606.08415), in place of SiLU."""

    def gelu_mul(self, gate_up_T2I: torch.Tensor, out_TI: torch.Tensor) -> None:
        """The same with GELU as it is defined, by the error function."""
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        torch.mul(F.gelu(gate_TI), up_TI, out=out_TI)

    @abstractmethod
    def sample(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> SampledTokens:
        """Draw tokens by the inverse of the distribution function in vocabulary order, one uniform each.

        Tokens that are not allowed are left out, then temperature, then the tokens at least ``min_p`` times as likely
        as the likeliest, then the k likeliest (ties with the last kept), then the smallest set that reaches ``top_p``
        of what is left (ties kept).
        A logit of minus infinity is never drawn.
        """

    def draw(self, logits_RV: torch.Tensor, batch: SamplingBatch) -> Draw:
        """Like ``sample``, for a batch that does not want the kept tokens. Where the device works by itself, nobody
        waits for it."""
        return FinishedDraw(sampled=self.sample(logits_RV, batch), device=logits_RV.device)
