"""What a network, or the critic's head, learns at: a pure function of the updates that were made.

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

from rlserve.trainers.backends.base import CRITIC, CRITIC_HEAD, POLICY
from rlserve.trainers.backends.config import OptimizationConfig

_HEAD_PREFIX = "value_head."
"""Of the names of the head's parameters in a critic."""


def learning_rates(config: OptimizationConfig, networks: Iterable[str], num_updates: int) -> dict[str, float]:
    """Of these networks, and of the critic's head where it has its own, in the update after ``num_updates``."""
    rates = {POLICY: config.learning_rate, CRITIC: config.critic_learning_rate}  # of a shared trunk the policy's
    late = {POLICY: config.critic_warmup_steps}
    learning = list(networks)
    if CRITIC in learning and config.critic_head_learning_rate is not None:
        rates[CRITIC_HEAD] = config.critic_head_learning_rate
        learning.append(CRITIC_HEAD)
    return {each: rates[each] * _share(config, num_updates, begin=late.get(each, 0)) for each in learning}


def rate_of(config: OptimizationConfig, network: str, parameter_name: str) -> str:
    """Which of ``learning_rates`` a parameter, by its name in its network, learns at."""
    has_own_rate = config.critic_head_learning_rate is not None
    return CRITIC_HEAD if has_own_rate and network == CRITIC and parameter_name.startswith(_HEAD_PREFIX) else network


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
