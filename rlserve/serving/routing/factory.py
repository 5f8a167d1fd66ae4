"""Policies by their name in the configuration."""

from __future__ import annotations

from rlserve.serving.config import RoutingConfig
from rlserve.serving.routing.base import RoutingPolicy
from rlserve.serving.routing.consistent_hash import ConsistentHash
from rlserve.serving.routing.least_load import LeastLoad
from rlserve.serving.routing.measured_speed import MeasuredSpeed
from rlserve.serving.routing.round_robin import RoundRobin


def create_policy(config: RoutingConfig) -> RoutingPolicy:
    """The policy that is configured."""
    match config.policy:
        case "least_load":
            return LeastLoad()
        case "round_robin":
            return RoundRobin()
        case "consistent_hash":
            return ConsistentHash(config.max_load_ratio)
        case "measured_speed":
            return MeasuredSpeed()
