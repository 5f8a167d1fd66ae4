"""What a network learns at: a pure function of the updates that were made."""

from __future__ import annotations

from collections.abc import Iterable

from rlserve.trainers.backends.base import CRITIC, POLICY
from rlserve.trainers.backends.config import OptimizationConfig


def learning_rates(config: OptimizationConfig, networks: Iterable[str], num_updates: int) -> dict[str, float]:
    """Of these networks, in the update after ``num_updates``: rising linearly over ``num_warmup_steps`` updates."""
    rates = {POLICY: config.learning_rate, CRITIC: config.critic_learning_rate}
    share = min(1.0, (num_updates + 1) / max(1, config.num_warmup_steps))
    return {network: rates[network] * share for network in networks}
