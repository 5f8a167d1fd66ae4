"""Makes the policy that the configuration names."""

from __future__ import annotations

from typing import Any

from rlserve.manager.config import ManagerConfig
from rlserve.manager.policies.base import Policy
from rlserve.manager.policies.queue_threshold import QueueThresholdPolicy
from rlserve.manager.policies.rate_matching import RateMatchingPolicy
from rlserve.manager.policies.static import StaticPolicy


def create_policy(config: ManagerConfig) -> Policy[Any]:
    """The policy of ``config.policy``."""
    match config.policy:
        case "queue_threshold":
            return QueueThresholdPolicy(config)
        case "rate_matching":
            return RateMatchingPolicy(config)
        case "static":
            return StaticPolicy(config)
