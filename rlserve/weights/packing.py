"""Tensors, or what changed of them, as one block of bytes: no pickle, and every bit that is used is covered.

A snapshot is taken at a step boundary, in one pass: its fingerprint is summed up while it is copied. That fingerprint
proves the whole wherever it arrives, and the result of a delta; what is coded has a checksum besides, since it is
decoded before there is a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from rlserve.engine.weights.fingerprint import copied_fingerprints, named_fingerprint, total_fingerprint
from rlserve.errors import WeightsRefusedError
from rlserve.weights.offer import Holding
from rlserve.weights.reused_memory import ReusedMemory

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
    """What lies in a payload."""

    version: int
    entries: tuple[TensorEntry, ...]
    """Of the tensors at this version, also where only what changed of them lies in the payload."""
    num_bytes: int
    base: Holding | None = None
    """What the payload is to be applied to (``delta.codec``); None: it is the tensors themselves."""
    checksum: str = ""
    """SHA-256 of the payload, if it is a coded delta."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeights:
    """One version, ready to travel."""

    manifest: Manifest
    payload: torch.Tensor
    """[num_bytes] uint8, of all tensors, each aligned, or of a coded delta, which is in host memory."""
    is_own: bool = False
    """Whether nobody else has the payload: only then it may be written to."""

    def check(self) -> None:
        """See that a delta is what was packed, before it is decoded. A whole is proved by its fingerprint.

        Raises:
            WeightsRefusedError: it is damaged.
        """
        if self.manifest.base is not None and _checksum(self.payload) != self.manifest.checksum:
            raise WeightsRefusedError(f"version {self.manifest.version} of the weights arrived damaged: wrong checksum")


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A copy of the tensors as they were at one version, in the order of their entries."""

    version: int
    entries: tuple[TensorEntry, ...]
    payload: torch.Tensor
    """[num_bytes] uint8."""
    fingerprint: int
    """Of the tensors, to compare with what an engine has loaded."""

    def pack(self) -> PackedWeights:
        """The whole; the payload is not copied."""
        manifest = Manifest(version=self.version, entries=self.entries, num_bytes=self.payload.nbytes)
        return PackedWeights(manifest=manifest, payload=self.payload)

    def pack_delta(self, coded: torch.Tensor, base: Holding) -> PackedWeights:
        """What changed since ``base``, coded to bytes and closed with a checksum, to travel in place of the whole."""
        manifest = Manifest(
            version=self.version,
            entries=self.entries,
            num_bytes=coded.nbytes,
            base=base,
            checksum=_checksum(coded),
        )
        return PackedWeights(manifest=manifest, payload=coded)


def take_snapshot(
    version: int, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, memory: ReusedMemory | None = None
) -> Snapshot:
    """Copy ``tensors``, cast to the engines' type. Reads them once and writes the copy once, into ``memory`` or memory
    of its own."""
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
    payload = (memory or ReusedMemory()).take(offset)
    copies = [
        (tensor.detach(), view)
        for (_, view), tensor in zip(tensors_in(payload, entries), tensors.values(), strict=True)
    ]
    named = (
        named_fingerprint(entry.name, entry.shape, dtype, of_tensor)
        for entry, of_tensor in zip(entries, copied_fingerprints(copies), strict=True)
    )
    return Snapshot(version=version, entries=tuple(entries), payload=payload, fingerprint=total_fingerprint(named))


def tensors_in(payload: torch.Tensor, entries: Sequence[TensorEntry]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors with their names, as views of ``payload``: they must not be written to where that must not."""
    for entry in entries:
        raw = payload[entry.offset_bytes : entry.offset_bytes + entry.num_bytes]
        yield entry.name, raw.view(getattr(torch, entry.dtype)).reshape(entry.shape)


def _checksum(coded: torch.Tensor) -> str:
    return hashlib.sha256(coded.numpy().data).hexdigest()
