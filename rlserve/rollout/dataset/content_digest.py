"""What the content of the data comes down to, so that a run is not resumed on another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_PARTS = 256
"""Parts of the data with a digest of their own, so that the place of a difference can be told."""
_DIGEST_BYTES = 8


def digest(*values: Any) -> int:
    """64 bits of plain data."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=_DIGEST_BYTES).digest(), "little")


def fingerprint(digests: NDArray[np.uint64]) -> tuple[str, ...]:
    """One digest for each part of the rows, whose own are [rows]; their order counts."""
    return tuple(
        hashlib.blake2b(digests[start:end].astype("<u8").tobytes(), digest_size=_DIGEST_BYTES).hexdigest()
        for start, end in _parts(len(digests))
    )


def first_difference(before: Sequence[str], digests: NDArray[np.uint64]) -> tuple[int, int] | None:
    """The first part, as first and last row, whose fingerprint is not that of ``before``; None where all are. Both
    must have as many rows."""
    pairs = zip(before, fingerprint(digests), _parts(len(digests)), strict=True)
    return next(((start, end - 1) for old, new, (start, end) in pairs if old != new), None)


def _parts(num_rows: int) -> list[tuple[int, int]]:
    num_parts = min(num_rows, NUM_PARTS)
    bounds = [num_rows * part // num_parts for part in range(num_parts + 1)] if num_parts else [0]
    return list(pairwise(bounds))
