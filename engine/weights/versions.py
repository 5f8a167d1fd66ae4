"""The version of the weights in the model, and the ways to the next one.

    load      the whole model at once
    buckets   begin ──► add, add, … ──► finish      staged beside the running model, swapped in at the end
                           └──► abandon             nothing has changed
    delta     only the elements that differ from a base version

All are checked before anything changes, and leave the model at the old version if they are refused. A version
never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rlserve.engine.runner import ModelRunner
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError

NO_VERSION = -1
"""Weight version of an engine that has no weights."""

WeightChanges = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Hugging Face name -> (indices into the flattened weight, whole numbers; their new values), both [changed]."""


@dataclass(kw_only=True)
class _OpenUpdate:
    """A version that arrives in buckets."""

    version: int
    staged: dict[str, torch.Tensor] = field(default_factory=dict)


class WeightVersions:
    """Owner of the version. ``on_change`` is called with it when new weights are in place."""

    def __init__(self, runner: ModelRunner, on_change: Callable[[int], None]) -> None:
        self.version = NO_VERSION
        """Of the weights loaded last; kept while they are released, so that it does not go back."""
        self.is_loaded = False
        self.is_released = False
        self._runner = runner
        self._on_change = on_change
        self._open: _OpenUpdate | None = None

    @property
    def is_updating(self) -> bool:
        """Whether a version is arriving in buckets."""
        return self._open is not None

    def load_folder(self, folder: Path) -> None:
        """Version 0, from a Hugging Face folder."""
        self._runner.load_folder(folder)
        self._changed(0)

    def load(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy a whole model into place."""
        self._check(version)
        self._runner.update_weights(tensors)
        self._changed(version)

    def begin(self, version: int) -> None:
        """Open an update in buckets."""
        self._check(version)
        self._open = _OpenUpdate(version=version)

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Stage copies of some tensors. A bucket that is refused is left out whole."""
        staged = self._opened().staged
        twice = sorted(staged.keys() & tensors.keys())
        if twice:
            raise WeightsRefusedError(f"weights refused: {twice[0]} was sent already")
        staged |= self._runner.copies_of_weights(tensors)

    def finish(self, checksum: int) -> None:
        """Swap in what was staged, and close the update; if that is refused, it is as if abandoned."""
        update = self._opened()
        self._open = None
        names = {name for name, _ in self._runner.named_weights()}
        found = fingerprint((name, tensor) for name, tensor in update.staged.items() if name in names)
        # Where tensors are missing the checksum is wrong too, but which are missing says more.
        if found != checksum and names <= update.staged.keys():
            raise WeightsRefusedError(
                f"weights refused: version {update.version} has checksum {found:016x}, must be {checksum:016x}"
            )
        self._runner.update_weights(update.staged)
        self._changed(update.version)

    def abandon(self) -> None:
        """Drop what was staged."""
        self._opened()
        self._open = None

    def apply_delta(self, version: int, base_version: int, changes: WeightChanges, checksum: int) -> None:
        """Write the changed elements, and take them back if the result is not what it must be."""
        self._check(version)
        if not self.is_loaded or base_version != self.version:
            has = f"has version {self.version}" if self.is_loaded else "has no weights"
            raise WeightsRefusedError(f"weights refused: changes to version {base_version}, but the engine {has}")
        weights = dict(self._runner.named_weights())
        problems = [problem for name, change in changes.items() if (problem := _problem(name, change, weights))]
        if problems:
            raise WeightsRefusedError(f"weights refused: {problems[0]}")
        with torch.inference_mode():
            before = {
                name: weights[name].view(-1)[_on_device(weights[name], change[0])] for name, change in changes.items()
            }
            for name, (indices, values) in changes.items():
                _write(weights[name], indices, values)
            found = fingerprint(weights.items())
            if found != checksum:
                for name, (indices, _) in changes.items():
                    _write(weights[name], indices, before[name])
                raise WeightsRefusedError(
                    f"weights refused: version {version} has checksum {found:016x}, must be {checksum:016x}; "
                    f"the engine keeps version {self.version}"
                )
        self._runner.weights_changed()
        self._changed(version)

    def release(self) -> None:
        """Free the memory of the weights."""
        self._runner.release_weights()
        self.is_released, self.is_loaded = True, False

    def restore(self) -> None:
        """Take the memory again, empty."""
        self._runner.restore_weights()
        self.is_released = False

    def _check(self, version: int) -> None:
        if version < max(self.version, 0):
            raise WeightsRefusedError(f"weights refused: version {version}, but the engine has {self.version}")
        if self.is_released:
            raise WeightsRefusedError("weights refused: the engine's memory is released, restore it first")
        if self._open is not None:
            raise WeightsRefusedError(
                f"weights refused: version {self._open.version} is arriving, finish or abandon it first"
            )

    def _opened(self) -> _OpenUpdate:
        if self._open is None:
            raise WeightsRefusedError("weights refused: no update was begun")
        return self._open

    def _changed(self, version: int) -> None:
        self.version, self.is_loaded = version, True
        self._on_change(version)


def _problem(name: str, change: tuple[torch.Tensor, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str | None:
    """Why a change cannot be made, or None."""
    indices, values = change
    if name not in weights:
        return f"{name} is unknown"
    if indices.dtype not in (torch.int64, torch.int32) or indices.dim() != 1 or indices.shape != values.shape:
        return f"{name} must have as many values as indices, whole numbers in one dimension"
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < weights[name].numel():
        return f"{name} has {weights[name].numel()} elements, and the indices point past them"
    return None


def _write(weight: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    weight.view(-1)[_on_device(weight, indices)] = values.to(device=weight.device, dtype=weight.dtype)


def _on_device(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return indices.to(device=weight.device, dtype=torch.int64)
