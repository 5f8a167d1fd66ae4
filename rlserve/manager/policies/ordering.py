"""Which of several gangs moves first.

Decoding is bound by memory bandwidth and training by FLOP/s, so what counts is the ratio of the two: throughput is
greatest where rollout has the gangs with the highest ratio (the fluid optimum of ``x_i r_i = (1 - x_i) s_i``, filled in
order of ``r_i / s_i``). Bandwidth-rich types are thus the last to leave rollout and FLOP-rich types the last to leave
training. A role that the user prefers for a gang goes before all that, and who may not train before everybody.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlserve.manager.policies.base import GangView
from rlserve.manager.roles import Role


def order_for_rollout(gangs: Iterable[GangView]) -> list[GangView]:
    """``gangs`` with the one that should be the first to take the rollout role first."""
    return sorted(gangs, key=lambda gang: (_rollout_rank(gang), gang.id))


def order_for_training(gangs: Iterable[GangView]) -> list[GangView]:
    """``gangs`` with the one that should be the first to take the train role first: the other way round."""
    return order_for_rollout(gangs)[::-1]


def _rollout_rank(gang: GangView) -> tuple[bool, int, float]:
    preference = {Role.ROLLOUT: 0, None: 1, Role.TRAIN: 2}[gang.prefer]
    bandwidth_per_flop = gang.figures.memory_bandwidth_gb_s / gang.figures.flops_tflops
    return gang.may_train, preference, -bandwidth_per_flop
