"""Weights through files in a folder that all nodes see: the cargo is the name of a file and what must be in it.

A file is written under a temporary name, flushed to the disk and then renamed. Only the cargo of a finished file is
ever handed out, so whatever a writer that crashed left behind is taken for nothing; it goes when newer versions come.
Names are never used twice: a version that is sent again does not change a file that somebody reads.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlserve.errors import ArgumentLostError, WeightsRefusedError, WorkerFailedError
from rlserve.weights.config import SharedFolderConfig
from rlserve.weights.packing import Manifest, PackedWeights
from rlserve.weights.transports.base import ReceivingEnd, SendingEnd, Transport

_FINISHED, _UNFINISHED = ".weights", ".unfinished"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """Where a version lies, and how to see that it is whole."""

    path: Path
    manifest: Manifest


class SharedFolderSendingEnd(SendingEnd):
    """Writes one file a version."""

    def __init__(self, config: SharedFolderConfig) -> None:
        self._folder = Path(config.folder)

    def send(self, packed: PackedWeights) -> WeightFile:
        manifest = packed.manifest
        stem = f"{manifest.version:09d}-{uuid.uuid4().hex}"
        unfinished, path = (self._folder / (stem + suffix) for suffix in (_UNFINISHED, _FINISHED))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("xb") as file:
                file.write(packed.payload.numpy().data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
            _flush_names(self._folder)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise WorkerFailedError(
                f"version {manifest.version} of the weights cannot be written to weights.folder={self._folder}: "
                f"{error.strerror}"
            ) from error
        return WeightFile(path=path, manifest=manifest)

    def discard(self, needed: Collection[int]) -> None:
        """Newer files than all that are needed may be under way, and stay. With none needed all go, and the folder."""
        newest = max(needed, default=None)
        for version, path in _files(self._folder):
            if version not in needed and (newest is None or version < newest):
                path.unlink(missing_ok=True)  # another sender may tidy up at the same time
        if newest is None:
            with contextlib.suppress(OSError):  # there are files that are not ours
                self._folder.rmdir()


class SharedFolderReceivingEnd(ReceivingEnd):
    """Reads it into memory."""

    def __init__(self, config: SharedFolderConfig) -> None:
        pass

    def receive(self, cargo: WeightFile) -> PackedWeights:
        version, num_bytes = cargo.manifest.version, cargo.manifest.num_bytes
        try:
            payload = np.fromfile(cargo.path, dtype=np.uint8)
        except FileNotFoundError as error:
            raise ArgumentLostError(f"version {version} of the weights is gone from {cargo.path.parent}") from error
        if payload.nbytes != num_bytes:
            raise WeightsRefusedError(
                f"version {version} of the weights arrived damaged: {cargo.path} has {payload.nbytes} bytes, "
                f"{num_bytes} were written"
            )
        return PackedWeights(manifest=cargo.manifest, payload=torch.from_numpy(payload), is_own=True)


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    """All of ours, with the version of each."""
    for path in folder.glob("*"):
        number = path.stem.partition("-")[0]
        if path.suffix in (_FINISHED, _UNFINISHED) and number.isdecimal():
            yield int(number), path


def _flush_names(folder: Path) -> None:
    """A renamed file is there after a power failure only if its folder was flushed too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SHARED_FOLDER = Transport(sending=SharedFolderSendingEnd, receiving=SharedFolderReceivingEnd)
