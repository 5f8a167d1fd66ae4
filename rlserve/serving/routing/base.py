"""The contract of a routing policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class RoutedRequest:
    """What a policy knows of a request."""

    number: int
    """How many were routed before it."""
    affinity: str
    """Requests with the same begin alike, or are of one session."""


@dataclass(frozen=True, kw_only=True)
class ReplicaLoad:
    """What a policy knows of a replica that takes requests."""

    name: str
    num_samples: int
    """Answers that are under way there, those that wait included."""
    tokens_per_s: float | None = None
    """Measured while it was busy; None before it was."""


class RoutingPolicy(Protocol):
    """Pure: the same request and loads give the same choice."""

    def choose(self, request: RoutedRequest, loads: Sequence[ReplicaLoad]) -> str:
        """The name of one of ``loads``, of which there is at least one."""
