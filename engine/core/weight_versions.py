"""The version of the weights in the model, and the ways to the next one.

    load      the whole model at once
    stage     the whole model beside the running one, by any thread ──► swap
    buckets   begin ──► add, add, … ──► finish      staged beside the running model, swapped in at the end
                           └──► abandon             nothing has changed
    delta     only the elements that differ from a base version

All are checked before anything changes, and leave the model at the old version if they are refused. What raises
later, in the middle of writing, leaves a model of which nobody knows what it is: it counts as not loaded until a
whole version is there. A version never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from rlserve.engine.decoder.parameters import WeightChanges
from rlserve.engine.decoder.staging import StagedWeights
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.engine.weights.check import check_checksum, check_version
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError

NO_VERSION = -1
"""Weight version of an engine that has no weights."""


class WeightVersions:
    """Owner of the version. ``on_change`` is called with it when new weights are in place."""

    def __init__(self, runner: ModelRunner, on_change: Callable[[int], None]) -> None:
        self.version = NO_VERSION
        """Of the weights loaded last; kept while they are released, so that it does not go back."""
        self.is_loaded = False
        """Whether all weights are those of ``version``; False from the first write on until the last one."""
        self.is_released = False
        self._runner = runner
        self._on_change = on_change
        self._arriving: int | None = None
        """The version that arrives in buckets."""

    @property
    def is_updating(self) -> bool:
        """Whether a version is arriving in buckets."""
        return self._arriving is not None

    def load_folder(self, folder: Path) -> None:
        """Version 0, from a Hugging Face folder."""
        self._runner.load_folder(folder)
        self._changed(0)

    def load(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy a whole model into place."""
        self._check(version)
        checked = self._runner.checked_weights(tensors)
        self.is_loaded = False
        self._runner.put_weights(checked)
        self._changed(version)

    def swap(self, version: int, staged: StagedWeights) -> int:
        """Put a whole model that was staged into place; returns the fingerprint of what is there: what was staged, if
        that memory itself is computed with from now on, else what is read back."""
        self._check(version)
        self.is_loaded = False
        self._runner.swap_in(staged)
        self._changed(version)
        return fingerprint(self._runner.named_weights()) if staged.beside is None else staged.fingerprint

    def begin(self, version: int) -> None:
        """Open an update in buckets."""
        self._check(version)
        self._arriving = version

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Stage copies of some tensors. A bucket that is refused is left out whole; one whose copying raises ends the
        update."""
        version = self._opened()
        bucket = self._runner.checked_bucket(tensors)
        self._arriving = None
        with ExitStack() as undo:
            undo.callback(self._runner.drop_staged_weights)
            self._runner.keep_weights(bucket)
            undo.pop_all()
        self._arriving = version

    def finish(self, checksum: int) -> None:
        """Swap in what was staged, and close the update; if that is refused, it is as if abandoned."""
        check_checksum(checksum)
        version = self._opened()
        self._arriving = None
        try:
            self._runner.check_staged_weights()
            found = fingerprint(self._runner.staged_weights())
            if found != checksum:
                raise WeightsRefusedError(
                    f"weights refused: version {version} has checksum {found:016x}, must be {checksum:016x}"
                )
            self.is_loaded = False
            self._runner.swap_staged_weights()
        finally:
            self._runner.drop_staged_weights()
        self._changed(version)

    def abandon(self) -> None:
        """Drop what was staged."""
        self._opened()
        self._arriving = None
        self._runner.drop_staged_weights()

    def apply_delta(self, version: int, base_version: int, changes: WeightChanges, checksum: int) -> None:
        """Write the changed elements, and take them back if the result is not what it must be."""
        check_checksum(checksum)
        check_version(base_version, "base version")
        self._check(version)
        if not self.is_loaded or base_version != self.version:
            has = f"has version {self.version}" if self.is_loaded else "has no weights"
            raise WeightsRefusedError(f"weights refused: changes to version {base_version}, but the engine {has}")
        self._runner.check_changes(changes)
        self.is_loaded = False
        self._runner.put_changes(changes)
        found = fingerprint(self._runner.named_weights())
        if found != checksum:
            self._runner.take_back_changes()
            self.is_loaded = True
            raise WeightsRefusedError(
                f"weights refused: version {version} has checksum {found:016x}, must be {checksum:016x}; "
                f"the engine keeps version {self.version}"
            )
        self._runner.keep_changes()
        self._changed(version)

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is loaded, by Hugging Face name."""
        if self.is_released:
            raise WeightsRefusedError("no weights to show: the engine's memory is released, restore it first")
        return self._runner.named_weights()

    def release(self) -> None:
        """Free the memory of the weights."""
        self._runner.release_weights()
        self.is_released, self.is_loaded = True, False

    def restore(self) -> None:
        """Take the memory again, empty."""
        self._runner.restore_weights()
        self.is_released = False

    def _check(self, version: int) -> None:
        check_version(version)
        if version < max(self.version, 0):
            raise WeightsRefusedError(f"weights refused: version {version}, but the engine has {self.version}")
        if self.is_released:
            raise WeightsRefusedError("weights refused: the engine's memory is released, restore it first")
        if self._arriving is not None:
            raise WeightsRefusedError(
                f"weights refused: version {self._arriving} is arriving, finish or abandon it first"
            )

    def _opened(self) -> int:
        if self._arriving is None:
            raise WeightsRefusedError("weights refused: no update was begun")
        return self._arriving

    def _changed(self, version: int) -> None:
        """Note that all has been written."""
        self._runner.weights_changed()
        self.version, self.is_loaded = version, True
        self._on_change(version)
