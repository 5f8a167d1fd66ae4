"""Tensors as one block of bytes: no pickle, every byte covered by a checksum.

A snapshot is taken at a step boundary, so it only copies. What reads the bytes again, checksum and fingerprint, can be
done while the trainer is stepping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What lies in a payload, and how to see that it is whole."""

    version: int
    entries: tuple[TensorEntry, ...]
    num_bytes: int
    checksum: str
    """SHA-256 of the payload."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeights:
    """Tensors of one version, packed end to end."""

    manifest: Manifest
    payload: NDArray[np.uint8]
    """[num_bytes] of all tensors, each aligned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A copy of the tensors as they were at one version, in the order of their entries."""

    version: int
    entries: tuple[TensorEntry, ...]
    payload: NDArray[np.uint8]

    def pack(self) -> PackedWeights:
        """Close it with a checksum; the payload is not copied."""
        return PackedWeights(
            manifest=Manifest(
                version=self.version,
                entries=self.entries,
                num_bytes=self.payload.nbytes,
                checksum=hashlib.sha256(self.payload.data).hexdigest(),
            ),
            payload=self.payload,
        )

    def fingerprint(self) -> int:
        """Of the tensors, to compare with what an engine has loaded."""
        return fingerprint(_views(torch.from_numpy(self.payload), self.entries))


def take_snapshot(version: int, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Snapshot:
    """Copy ``tensors``, cast to the engines' type. Reads them once and writes the copy once."""
    entries, offset = [], 0
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * dtype.itemsize
        entries.append(
            TensorEntry(
                name=name,
                dtype=str(dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                offset_bytes=offset,
                num_bytes=num_bytes,
            )
        )
        offset += -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    payload = np.zeros(offset, dtype=np.uint8)
    for (_, view), tensor in zip(_views(torch.from_numpy(payload), entries), tensors.values(), strict=True):
        view.copy_(tensor.detach())
    return Snapshot(version=version, entries=tuple(entries), payload=payload)


def unpack(packed: PackedWeights) -> dict[str, torch.Tensor]:
    """The tensors by name: views of the payload, or of a copy of it where its memory is read-only, as it is when it
    comes out of the object store (PyTorch has no read-only tensors).

    Raises:
        WeightsRefusedError: the payload is not what was packed.
    """
    manifest, payload = packed.manifest, packed.payload
    if hashlib.sha256(payload.data).hexdigest() != manifest.checksum:
        raise WeightsRefusedError(f"version {manifest.version} of the weights arrived damaged: wrong checksum")
    return dict(_views(torch.from_numpy(payload if payload.flags.writeable else payload.copy()), manifest.entries))


def _views(
    buffer: torch.Tensor, entries: tuple[TensorEntry, ...] | list[TensorEntry]
) -> Iterator[tuple[str, torch.Tensor]]:
    for entry in entries:
        raw = buffer[entry.offset_bytes : entry.offset_bytes + entry.num_bytes]
        yield entry.name, raw.view(getattr(torch, entry.dtype)).reshape(entry.shape)
