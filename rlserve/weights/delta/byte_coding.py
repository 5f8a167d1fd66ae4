"""Numbers, most of them small, as few bytes.

::

    numbers ─┬─► one byte each, 255 where it does not fit ──────────────► zstd ─► small
             └─► what the others are above 255, byte by byte of each ───► zstd ─► large

The bytes of large numbers are sorted by their significance, since high bytes are alike and low ones are not.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ESCAPE = 255
_LEVEL = 1
"""Of zstd: higher ones find nothing more in numbers that are drawn by chance."""
_HEADER = struct.Struct("<QQQB")
"""Count of all numbers, count of large ones, coded bytes of the small, bytes of a large one."""


def encode_numbers(numbers: NDArray[Any]) -> bytes:
    """Code an array of unsigned integers."""
    small = np.minimum(numbers, _ESCAPE).astype(np.uint8)
    large = numbers[small == _ESCAPE] - numbers.dtype.type(_ESCAPE)
    size = _narrowest(int(large.max(initial=0)))
    planes = np.ascontiguousarray(large.astype(f"<u{size}").view(np.uint8).reshape(-1, size).T)
    coded_small = _compress(small)
    return b"".join((_HEADER.pack(len(small), len(large), len(coded_small), size), coded_small, _compress(planes)))


def decode_numbers(coded: memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    """What was coded, as ``dtype``, which must be able to hold it."""
    num_numbers, num_large, num_small_bytes, size = _HEADER.unpack_from(coded)
    streams = coded[_HEADER.size :]
    small = _decompress(streams[:num_small_bytes], num_numbers)
    planes = _decompress(streams[num_small_bytes:], num_large * size).reshape(size, -1)
    numbers = small.astype(dtype)
    if num_large:
        numbers[small == _ESCAPE] += np.ascontiguousarray(planes.T).view(f"<u{size}").ravel().astype(dtype)
    return numbers


def _narrowest(largest: int) -> int:
    """Bytes of the smallest unsigned integer that holds it."""
    return next(size for size in (1, 2, 4, 8) if largest < 1 << (8 * size))


def _compress(content: NDArray[np.uint8]) -> bytes:
    return bytes(_zstd().compress(content.ravel(), asbytes=True)) if content.size else b""


def _decompress(coded: memoryview, num_bytes: int) -> NDArray[np.uint8]:
    if not num_bytes:
        return np.zeros(0, dtype=np.uint8)
    return np.frombuffer(_zstd().decompress(coded, num_bytes), dtype=np.uint8)


def _zstd() -> Any:
    from pyarrow import Codec  # only here: a worker that never sees a delta does without its 40 MB

    return Codec("zstd", compression_level=_LEVEL)
