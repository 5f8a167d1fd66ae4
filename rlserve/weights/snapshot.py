"""One version of the weights as one block of bytes: no pickle, every byte covered by a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies in the payload."""

    name: str
    dtype: str
    """Name of the torch type, as in ``float32``."""
    shape: tuple[int, ...]
    offset_bytes: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSnapshot:
    """The whole model at one version: all tensors, packed end to end."""

    version: int
    entries: tuple[TensorEntry, ...]
    payload: NDArray[np.uint8]
    """[num_bytes] of all tensors, each aligned."""
    checksum: str
    """SHA-256 of the payload."""
    fingerprint: int
    """Of the tensors, to compare with what an engine has loaded."""

    @property
    def num_bytes(self) -> int:
        """Size of the payload."""
        return int(self.payload.nbytes)


def pack(version: int, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> WeightSnapshot:
    """Cast ``tensors`` to the engines' type and pack them."""
    cast = {name: tensor.detach().to(device="cpu", dtype=dtype).contiguous() for name, tensor in tensors.items()}
    entries, offset = [], 0
    for name, tensor in cast.items():
        num_bytes = tensor.numel() * tensor.element_size()
        entries.append(
            TensorEntry(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                offset_bytes=offset,
                num_bytes=num_bytes,
            )
        )
        offset += -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    payload = np.zeros(offset, dtype=np.uint8)
    for entry, tensor in zip(entries, cast.values(), strict=True):
        raw = tensor.flatten().view(torch.uint8).numpy()
        payload[entry.offset_bytes : entry.offset_bytes + entry.num_bytes] = raw
    return WeightSnapshot(
        version=version,
        entries=tuple(entries),
        payload=payload,
        checksum=hashlib.sha256(payload.data).hexdigest(),
        fingerprint=fingerprint(cast.items()),
    )


def unpack(snapshot: WeightSnapshot) -> dict[str, torch.Tensor]:
    """The tensors by name: views of the payload, or of a copy of it where its memory is read-only, as it is when it
    comes out of the object store (PyTorch has no read-only tensors).

    Raises:
        WeightsRefusedError: the payload is not what was packed.
    """
    if hashlib.sha256(snapshot.payload.data).hexdigest() != snapshot.checksum:
        raise WeightsRefusedError(f"version {snapshot.version} of the weights arrived damaged: wrong checksum")
    buffer = torch.from_numpy(snapshot.payload if snapshot.payload.flags.writeable else snapshot.payload.copy())
    return {
        entry.name: buffer[entry.offset_bytes : entry.offset_bytes + entry.num_bytes]
        .view(getattr(torch, entry.dtype))
        .reshape(entry.shape)
        for entry in snapshot.entries
    }
