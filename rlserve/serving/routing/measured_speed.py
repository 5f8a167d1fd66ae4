"""Where it is done soonest, by the speeds that were measured: for replicas on unlike accelerators."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.serving.routing.base import ReplicaLoad, RoutedRequest


class MeasuredSpeed:
    """Answers under way, with this one, over the tokens a second that the replica makes. One that was not measured yet
    counts as the fastest, and so is measured soon."""

    def choose(self, request: RoutedRequest, loads: Sequence[ReplicaLoad]) -> str:
        """The one with the least time to go."""
        fastest = max((load.tokens_per_s or 0.0 for load in loads), default=0.0) or 1.0
        return min(loads, key=lambda load: ((load.num_samples + 1) / (load.tokens_per_s or fastest), load.name)).name
