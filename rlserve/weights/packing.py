"""Tensors, or what changed of them, as one block of bytes: no pickle, every byte covered by a checksum.

A snapshot is taken at a step boundary, so it only copies. What reads the bytes again, checksum and fingerprint, can be
done while the trainer is stepping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError
from rlserve.weights.offer import Holding

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
    """Of the tensors at this version, also where only what changed of them lies in the payload."""
    num_bytes: int
    checksum: str
    """SHA-256 of the payload."""
    base: Holding | None = None
    """What the payload is to be applied to (``delta.codec``); None: it is the tensors themselves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeights:
    """One version, ready to travel."""

    manifest: Manifest
    payload: NDArray[np.uint8]
    """[num_bytes] of all tensors, each aligned, or of a coded delta. Read-only where it is the sender's own."""

    def check(self) -> None:
        """See that it is what was packed.

        Raises:
            WeightsRefusedError: it is damaged.
        """
        if hashlib.sha256(self.payload.data).hexdigest() != self.manifest.checksum:
            raise WeightsRefusedError(f"version {self.manifest.version} of the weights arrived damaged: wrong checksum")


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A copy of the tensors as they were at one version, in the order of their entries."""

    version: int
    entries: tuple[TensorEntry, ...]
    payload: NDArray[np.uint8]

    def pack(self) -> PackedWeights:
        """Close the whole with a checksum; the payload is not copied."""
        return self._sealed(self.payload, None)

    def pack_delta(self, coded: NDArray[np.uint8], base: Holding) -> PackedWeights:
        """Close what changed since ``base`` with a checksum, to travel in place of the whole."""
        return self._sealed(coded, base)

    def _sealed(self, content: NDArray[np.uint8], base: Holding | None) -> PackedWeights:
        payload = content.view()
        payload.flags.writeable = False
        return PackedWeights(
            manifest=Manifest(
                version=self.version,
                entries=self.entries,
                num_bytes=payload.nbytes,
                checksum=hashlib.sha256(payload.data).hexdigest(),
                base=base,
            ),
            payload=payload,
        )

    def fingerprint(self) -> int:
        """Of the tensors, to compare with what an engine has loaded."""
        return fingerprint(tensors_in(self.payload, self.entries))


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
    for (_, view), tensor in zip(tensors_in(payload, entries), tensors.values(), strict=True):
        view.copy_(tensor.detach())
    return Snapshot(version=version, entries=tuple(entries), payload=payload)


def tensors_in(payload: NDArray[np.uint8], entries: Sequence[TensorEntry]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors with their names, as views of ``payload``, which must be writable: PyTorch has no other tensors."""
    buffer = torch.from_numpy(payload)
    for entry in entries:
        raw = buffer[entry.offset_bytes : entry.offset_bytes + entry.num_bytes]
        yield entry.name, raw.view(getattr(torch, entry.dtype)).reshape(entry.shape)
