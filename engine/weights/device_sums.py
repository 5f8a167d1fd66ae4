"""Sums for the fingerprints of many tensors on a GPU: one launch and one wait for all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import triton.language as tl

from rlserve.engine.weights.sum_program import sum_bits

_SPAN = 2**16
"""Elements that one program sums up."""
_BLOCK = 2**11
_BITS = {torch.uint8: tl.uint8, torch.int16: tl.int16, torch.int32: tl.int32, torch.int64: tl.int64}


def weighted_sums(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Of each, ``bits(i) * (2 i + 1)`` summed over all elements modulo 2^64. All are flat, contiguous, of one type of
    integers, and on one GPU (or on the CPU, in Triton's interpreter)."""
    sizes = np.array([tensor.numel() for tensor in tensors], dtype=np.int64)
    num_pieces = -(-sizes // _SPAN)
    if not num_pieces.sum():
        return [0] * len(tensors)
    device, dtype = tensors[0].device, tensors[0].dtype
    begins = np.cumsum(num_pieces) - num_pieces
    owner = np.repeat(np.arange(len(tensors)), num_pieces)
    addresses = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
    firsts = (np.arange(len(owner)) - begins[owner]) * _SPAN
    pieces = torch.from_numpy(np.stack([addresses[owner], firsts, sizes[owner]], axis=1)).to(device)
    sums = torch.empty(len(owner), dtype=torch.int64, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        sum_bits[len(owner),](pieces, sums, SPAN=_SPAN, BLOCK=_BLOCK, BITS=_BITS[dtype])
    found = np.zeros(len(tensors), dtype=np.uint64)
    np.add.at(found, owner, sums.cpu().numpy().view(np.uint64))
    return [int(total) for total in found]
