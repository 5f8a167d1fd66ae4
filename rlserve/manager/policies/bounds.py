"""How far the split of the pool may go: one answer for the policy, the checks of a configuration and ``--dry-run``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlserve.manager.config import ManagerConfig
from rlserve.manager.policies.base import GangView

_TOLERANCE = 1e-9  # 0.29 * 100 is a little less than 29, and 0.1 * 30 a little more than 3


def rollout_bounds(config: ManagerConfig, gangs: Sequence[GangView]) -> tuple[int, int]:
    """Fewest and most rollout gangs; one trainer always stays, and who may not train rolls out. The first may exceed
    the second: no split is legal."""
    num_gangs = len(gangs)
    least = max(1, sum(not gang.may_train for gang in gangs))
    if config.policy == "static":
        return least, num_gangs - 1
    fewest = max(least, math.ceil(config.min_rollout_share * num_gangs - _TOLERANCE))
    most = min(num_gangs - 1, math.floor(config.max_rollout_share * num_gangs + _TOLERANCE))
    return fewest, most
