"""Weights through Ray's object store: the trainer's worker packs a snapshot, replicas map it and copy it in.

The snapshot is the return value of a call on the trainer's worker. So it belongs to the controller's process and
outlives the worker that made it, but it lies in the store of that worker's node: until another node has fetched it, it
is gone when the node is. On one machine all processes map the same memory; a replica copies it once out of that
memory, which is read-only, and once more into its engine.
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
        self._snapshot: Any = None  # reference to the newest WeightSnapshot
        self._num_publications = 0

    @property
    def version(self) -> int:
        return self._version

    async def publish(self, trainer: Any, version: int) -> None:
        if version < self._version:
            raise WeightsRefusedError(f"version {version} is older than the published {self._version}")
        snapshot, digest = trainer.pack_weights.options(num_returns=2).remote(version)
        what = f"the trainer packing version {version} of the weights"
        fingerprint: int = await answer(digest, timeout_s=self._timeout_s, what=what)
        if version == self._version and fingerprint != self._fingerprint:
            raise WeightsRefusedError(
                f"version {version} published again has fingerprint {fingerprint:016x}, not {self._fingerprint:016x}"
            )
        self._snapshot, self._version, self._fingerprint = snapshot, version, fingerprint
        self._num_publications += 1

    @property
    def num_publications(self) -> int:
        return self._num_publications

    async def deliver(self, replica: Any, name: str) -> Receipt:
        assert self._version >= 0, "nothing was published yet"
        version, expected = self._version, self._fingerprint
        what = f"the replica on {name}, taking version {version} of the weights"
        call = replica.load_weights.remote(self._snapshot)
        receipt: Receipt = await answer(call, timeout_s=self._timeout_s, what=what)
        if (receipt.version, receipt.fingerprint) != (version, expected):
            raise WeightsRefusedError(
                f"the replica on {name} reports version {receipt.version} with fingerprint {receipt.fingerprint:016x}, "
                f"published was version {version} with {expected:016x}"
            )
        return receipt
