"""In turn."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.serving.routing.base import ReplicaLoad, RoutedRequest


class RoundRobin:
    """Each replica gets as many requests as any other, whatever they cost."""

    def choose(self, request: RoutedRequest, loads: Sequence[ReplicaLoad]) -> str:
        """The next in order of their names."""
        return sorted(load.name for load in loads)[request.number % len(loads)]
