"""From one payload to the next, bit for bit.

::

             ┌ gaps between the elements that changed ──┐
    base ─┐  │                                          ├─ byte_coding ─► coded ─► apply_delta, in place
          ├──┤                                          │
    new ──┘  └ differences of their bits as integers, ──┘
               zig-zag: a step up or down is one byte

Bits are compared and subtracted, never numbers: any content comes back as it was, NaN and -0.0 too. Neighbouring floats
of one sign are neighbouring integers, so the small steps of training are small numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlserve.errors import WeightsRefusedError
from rlserve.weights.delta.byte_coding import decode_numbers, encode_numbers

_HEADER = struct.Struct("<QQB")
"""Elements of the payload, coded bytes of the gaps, bytes of an element."""
_ELEMENTS_AT_ONCE = 2**19
"""Compared at a time, so that what is found lies in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Delta:
    """What was found between two payloads."""

    coded: NDArray[np.uint8]
    num_changed: int
    """Elements."""


def encode_delta(base: NDArray[np.uint8], new: NDArray[np.uint8], element_size: int) -> Delta:
    """What turns ``base`` into ``new``.

    Args:
        base: [num_bytes], a whole number of elements.
        new: as long.
        element_size: 1, 2, 4 or 8 bytes.
    """
    before, after = base.view(f"<u{element_size}"), new.view(f"<u{element_size}")
    positions = _changed_positions(before, after)
    gaps = np.diff(positions, prepend=-1) - 1
    differences = after[positions] - before[positions]
    coded_gaps = encode_numbers(gaps.astype(np.uint64))
    header = _HEADER.pack(len(after), len(coded_gaps), element_size)
    # Not bytes: PyTorch warns of memory that cannot be written to.
    coded = bytearray().join((header, coded_gaps, encode_numbers(_zig_zag(differences))))
    return Delta(coded=np.frombuffer(coded, dtype=np.uint8), num_changed=len(positions))


def apply_delta(coded: NDArray[np.uint8], payload: NDArray[np.uint8]) -> None:
    """Turn the base, in place, into what it was coded against. Whether ``payload`` is that base and ``coded`` is whole
    must be known before.

    Raises:
        WeightsRefusedError: the payload has another size.
    """
    content = coded.data
    num_elements, num_gap_bytes, element_size = _HEADER.unpack_from(content)
    if num_elements * element_size != payload.nbytes:
        raise WeightsRefusedError(
            f"weights refused: changes to {num_elements * element_size} bytes, where {payload.nbytes} are held"
        )
    streams = content[_HEADER.size :]
    gaps = decode_numbers(streams[:num_gap_bytes], np.dtype(np.int64))
    elements = payload.view(f"<u{element_size}")
    differences = _undo_zig_zag(decode_numbers(streams[num_gap_bytes:], elements.dtype))
    elements[np.cumsum(gaps + 1) - 1] += differences


def _changed_positions(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.int64]:
    found = [
        start + np.flatnonzero(before[start : start + _ELEMENTS_AT_ONCE] != after[start : start + _ELEMENTS_AT_ONCE])
        for start in range(0, len(after), _ELEMENTS_AT_ONCE)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _zig_zag(differences: NDArray[Any]) -> NDArray[Any]:
    """0, -1, 1, -2, 2 … (modulo the type) as 0, 1, 2, 3, 4 …"""
    signed = differences.view(f"<i{differences.itemsize}")
    found: NDArray[Any] = ((signed << 1) ^ (signed >> (8 * differences.itemsize - 1))).view(differences.dtype)
    return found


def _undo_zig_zag(numbers: NDArray[Any]) -> NDArray[Any]:
    one = numbers.dtype.type(1)
    found: NDArray[Any] = (numbers >> one) ^ (~(numbers & one) + one)
    return found
