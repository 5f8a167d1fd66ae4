"""Weights through Ray's object store: the trainer's worker packs a patch, replicas map it and copy it in.

The patch is the return value of a call on the trainer's worker, so it belongs to the controller's process and
outlives the worker that made it. On one machine nothing is copied between processes but the engine's own load.
"""

from __future__ import annotations

from typing import Any

from rlserve.errors import WeightsRefusedError
from rlserve.remote import answer
from rlserve.weights.base import Receipt, Transport
from rlserve.weights.config import WeightsConfig


class ObjectStoreTransport(Transport):
    """Keeps the newest version alive in the object store, and no other."""

    def __init__(self, config: WeightsConfig) -> None:
        self._timeout_s = config.timeout_s
        self._version = -1
        self._fingerprint = 0
        self._patch: Any = None  # reference to the newest WeightPatch

    @property
    def version(self) -> int:
        return self._version

    async def publish(self, trainer: Any, version: int) -> None:
        if version <= self._version:
            raise WeightsRefusedError(f"version {version} is not newer than the published {self._version}")
        patch, digest = trainer.pack_weights.options(num_returns=2).remote(version)
        what = f"the trainer packing version {version} of the weights"
        self._fingerprint = await answer(digest, timeout_s=self._timeout_s, what=what)
        self._patch, self._version = patch, version

    async def deliver(self, replica: Any) -> Receipt:
        assert self._version >= 0, "nothing was published yet"
        version, expected = self._version, self._fingerprint
        what = f"a replica taking version {version} of the weights"
        call = replica.load_weights.remote(self._patch)
        receipt: Receipt = await answer(call, timeout_s=self._timeout_s, what=what)
        if (receipt.version, receipt.fingerprint) != (version, expected):
            raise WeightsRefusedError(
                f"a replica reports version {receipt.version} with fingerprint {receipt.fingerprint:016x}, "
                f"published was version {version} with {expected:016x}"
            )
        return receipt
