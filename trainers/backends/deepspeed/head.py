"""Log-probabilities of response tokens, some rows at a time, in one graph.

ZeRO reduces a gradient as soon as it is complete, so a pass may go backward through each parameter once only. The rows
therefore go through the output head in chunks inside of one operation, which keeps no logits and computes them again on
the way back.

Legend: a response tokens of a pass, c of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

_CHUNK_ELEMENTS = 2**22
"""Logits that are computed together whatever the hidden size: 16 MiB."""
_CHUNK_ROWS = 1024
"""Rows beyond which a larger chunk makes the head's products no quicker."""


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """How logits become log-probabilities."""

    temperature: float
    cap: float | None
    """Of the logits (tanh); None leaves them as they are."""
    with_entropy: bool


def response_log_probs(
    states_aH: Tensor, weight_VH: Tensor, targets_a: Tensor, options: HeadOptions
) -> tuple[Tensor, Tensor, Tensor | None]:
    """[a] log-probabilities of the targets under softmax(logits / temperature), those under softmax(logits), without
    gradient, and entropies of the former, or None where they were not asked for; all float32."""
    log_probs, raw_log_probs, entropies = _ChunkedHead.apply(states_aH, weight_VH, targets_a, options)  # type: ignore[no-untyped-call]
    return log_probs, raw_log_probs, entropies if options.with_entropy else None


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, states_aH: Tensor, weight_VH: Tensor, targets_a: Tensor, options: HeadOptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        context.save_for_backward(states_aH, targets_a)
        # Of stage 3, it has content only while its module computes, so what counts is the parameter itself.
        context.weight, context.options = weight_VH, options
        context.dtype = _product_dtype(states_aH)
        found_3a = torch.empty(3, len(targets_a), device=states_aH.device)
        weight = weight_VH.to(context.dtype)
        for rows in _chunks(len(targets_a), weight_VH):
            raw_cV = linear(states_aH[rows].to(context.dtype), weight)
            for row, values in zip(found_3a, _reduced(raw_cV, targets_a[rows], options), strict=True):
                row[rows] = values
        log_probs, raw_log_probs, entropies = found_3a.unbind()
        context.mark_non_differentiable(raw_log_probs)
        return log_probs, raw_log_probs, entropies

    @staticmethod
    def backward(
        context: Any, gradient_a: Tensor, _: Tensor | None, entropy_gradient_a: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        states_aH, targets_a = context.saved_tensors
        weight_VH, options = context.weight, context.options
        weight = weight_VH.detach().to(context.dtype)
        states_gradient, weight_gradient = torch.empty_like(states_aH), torch.zeros_like(weight_VH, dtype=torch.float32)
        for rows in _chunks(len(targets_a), weight_VH):
            chunk_cH = states_aH[rows].to(context.dtype)
            raw_cV = linear(chunk_cH, weight).requires_grad_()
            with torch.enable_grad():
                log_probs, _raw, entropies = _reduced(raw_cV, targets_a[rows], options)
                loss = (log_probs * gradient_a[rows]).sum()
                if options.with_entropy:
                    loss = loss + (entropies * entropy_gradient_a[rows]).sum()
            (logits_gradient,) = torch.autograd.grad(loss, raw_cV)
            states_gradient[rows] = (logits_gradient @ weight).to(states_gradient.dtype)
            if context.dtype == torch.float32:
                weight_gradient.addmm_(logits_gradient.T, chunk_cH)
            else:
                weight_gradient += logits_gradient.T @ chunk_cH
        return states_gradient, weight_gradient.to(weight_VH.dtype), None, None


def _product_dtype(states_aH: Tensor) -> torch.dtype:
    device_type = states_aH.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else torch.float32


def _chunks(num_rows: int, weight_VH: Tensor) -> Iterator[slice]:
    vocab_size, hidden_size = weight_VH.shape
    length = max(1, _CHUNK_ELEMENTS // vocab_size, min(hidden_size, _CHUNK_ROWS))
    return (slice(first, min(first + length, num_rows)) for first in range(0, num_rows, length))


def _reduced(raw_cV: Tensor, targets_c: Tensor, options: HeadOptions) -> tuple[Tensor, Tensor, Tensor]:
    """[c] log-probabilities, raw ones, and entropies (zeros where they were not asked for)."""
    raw_cV = raw_cV.float()
    if options.cap is not None:
        raw_cV = torch.tanh(raw_cV / options.cap) * options.cap
    log_distribution_cV = (raw_cV / options.temperature).log_softmax(dim=-1)
    log_probs = log_distribution_cV.gather(-1, targets_c[:, None]).squeeze(-1)
    raw_log_probs = log_probs.detach()
    if options.temperature != 1.0:
        with torch.no_grad():
            raw_log_probs = raw_cV.log_softmax(dim=-1).gather(-1, targets_c[:, None]).squeeze(-1)
    if options.with_entropy:
        entropies = -torch.linalg.vecdot(log_distribution_cV.exp(), log_distribution_cV)
    else:
        entropies = torch.zeros_like(raw_log_probs)
    return log_probs, raw_log_probs, entropies
