"""What begins alike goes to the same replica, where the beginning is cached.

Rendezvous hashing: each replica's claim on a key is a hash of both, and the highest claim wins. When a replica leaves,
only its own keys go elsewhere, and when it returns they come back. Loads are bounded: a replica with much more to do
than the mean is passed over for the next highest claim. A few answers are never much: a step takes hardly longer with
them, and where there is little to do the mean is so small that keys would wander.

Thaler, Ravishankar: Using name-based mappings to increase hit rates. IEEE/ACM Transactions on Networking 6 (1998).
Mirrokni, Thorup, Zadimoghaddam: Consistent hashing with bounded loads. SODA 2018.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from rlserve.serving.routing.base import ReplicaLoad, RoutedRequest

NEVER_MANY = 8
"""Answers: a replica with fewer is not passed over."""


class ConsistentHash:
    """
    Args:
        max_load_ratio: a replica with more than so many times the mean number of answers is passed over.
    """

    def __init__(self, max_load_ratio: float) -> None:
        self._max_load_ratio = max_load_ratio

    def choose(self, request: RoutedRequest, loads: Sequence[ReplicaLoad]) -> str:
        """The replica with the highest claim that is not too busy."""
        # With the request itself: some replica always has room.
        bound = max(self._max_load_ratio * (sum(load.num_samples for load in loads) + 1) / len(loads), NEVER_MANY)
        free = [load.name for load in loads if load.num_samples < bound]
        return max(free, key=lambda name: _claim(name, request.affinity))


def _claim(name: str, key: str) -> bytes:
    return hashlib.blake2b(f"{name}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
