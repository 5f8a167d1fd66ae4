"""One safetensors file, judged by its header and its size: milliseconds, however large it is.

A file is 8 bytes with the length of the header, the header (JSON), and the tensors' bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlserve.errors import ModelError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_GIT_LFS = b"version https://git-lfs"


def check_shard(path: Path) -> None:
    """Make sure that a shard is wholly there.

    Raises:
        ModelError: it is a Git LFS pointer, cut short or too long, no safetensors file, or cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_GIT_LFS))
            if start == _GIT_LFS:
                raise ModelError(f"{path} is a Git LFS pointer, not the weights: run git lfs pull in {path.parent}")
            num_header_bytes = int.from_bytes(start[:_LENGTH_BYTES], "little")
            if len(start) < _LENGTH_BYTES or num_header_bytes > _MAX_HEADER_BYTES:
                raise ModelError(f"{path} is no safetensors file ({size} bytes): fetch it again")
            file.seek(_LENGTH_BYTES)
            header = file.read(num_header_bytes)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(header) < num_header_bytes:
        raise ModelError(f"{path} is cut short: it has {size:,} bytes and ends within its header; fetch it again")
    expected = _LENGTH_BYTES + num_header_bytes + _num_data_bytes(path, header)
    if size != expected:
        wrong = "is cut short" if size < expected else "has too many bytes"
        raise ModelError(f"{path} {wrong}: {size:,} bytes, must be {expected:,}; fetch it again")


def _num_data_bytes(path: Path, header: bytes) -> int:
    """Where the last tensor ends."""
    try:
        entries: dict[str, Any] = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{path} is no safetensors file: its header cannot be read ({error}); fetch it again"
        ) from error
    return max(ends, default=0)
