"""What a network learns at: a pure function of the updates that were made.

::

    rate ┤      ┌───────── constant          critic: from the first update on
         │     /│ ─_                         policy: after ``critic_warmup_steps`` updates, in which it is 0
         │    / │    ─_ linear, cosine
         │   /  │       ─ ──── min_learning_rate_ratio
         └──┴───┴────────┴──────► updates
         0  num_warmup_steps  num_schedule_steps
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rlserve.trainers.backends.base import CRITIC, POLICY
from rlserve.trainers.backends.config import OptimizationConfig


def learning_rates(config: OptimizationConfig, networks: Iterable[str], num_updates: int) -> dict[str, float]:
    """Of these networks, in the update after ``num_updates``."""
    rates = {POLICY: config.learning_rate, CRITIC: config.critic_learning_rate}
    late = {POLICY: config.critic_warmup_steps, CRITIC: 0}
    return {network: rates[network] * _share(config, num_updates, begin=late[network]) for network in networks}


def _share(config: OptimizationConfig, num_updates: int, *, begin: int) -> float:
    """Of its value that a rate has which stays 0 for ``begin`` updates."""
    num_made, num_warmup = num_updates - begin, config.num_warmup_steps
    if num_made < 0:
        return 0.0
    if num_made < num_warmup:
        return (num_made + 1) / num_warmup
    if config.learning_rate_schedule == "constant":
        return 1.0
    assert config.num_schedule_steps is not None, "create_trainer asks for it"
    num_falling = max(1, config.num_schedule_steps - begin - num_warmup)
    progress = min(1.0, (num_made - num_warmup) / num_falling)
    fallen = 1.0 - progress if config.learning_rate_schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2
    return config.min_learning_rate_ratio + (1.0 - config.min_learning_rate_ratio) * fallen
