"""The Triton program of fingerprints; launched by ``device_sums.py``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_bits(pieces_ptr, sums_ptr, SPAN: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """Program (piece): ``bits(i) * (2 i + 1)`` summed over up to SPAN elements of a tensor. Of each piece, ``pieces``
    has the address of its tensor, the first element, and how many the tensor has."""
    piece = tl.program_id(0).to(tl.int64)
    address = tl.load(pieces_ptr + 3 * piece)
    first = tl.load(pieces_ptr + 3 * piece + 1)
    size = tl.load(pieces_ptr + 3 * piece + 2)
    bits_ptr = address.to(tl.pointer_type(BITS))
    total = tl.zeros((BLOCK,), dtype=tl.int64)
    for start in range(0, SPAN, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        total += tl.load(bits_ptr + at, mask=at < size, other=0).to(tl.int64) * (2 * at + 1)
    tl.store(sums_ptr + piece, tl.sum(total, 0))
