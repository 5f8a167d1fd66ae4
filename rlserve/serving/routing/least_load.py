"""Where the least is under way."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.serving.routing.base import ReplicaLoad, RoutedRequest


class LeastLoad:
    """The replica with the fewest answers under way; of those that have equally many, in turn."""

    def choose(self, request: RoutedRequest, loads: Sequence[ReplicaLoad]) -> str:
        """The least loaded."""
        least = min(load.num_samples for load in loads)
        names = sorted(load.name for load in loads if load.num_samples == least)
        return names[request.number % len(names)]
