"""Which of several slots moves first.

Decoding is bound by memory bandwidth and training by FLOP/s, so what counts is the ratio of the two: throughput is
greatest where rollout has the slots with the highest ratio (the fluid optimum of ``x_i r_i = (1 - x_i) s_i``, filled in
order of ``r_i / s_i``). Bandwidth-rich types are thus the last to leave rollout and FLOP-rich types the last to leave
training. A role that the user prefers for a slot goes before all that.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlserve.manager.policies.base import Role, SlotView


def order_for_rollout(slots: Iterable[SlotView]) -> list[SlotView]:
    """``slots`` with the one that should be the first to take the rollout role first."""
    return sorted(slots, key=lambda slot: (_rollout_rank(slot), slot.id))


def order_for_training(slots: Iterable[SlotView]) -> list[SlotView]:
    """``slots`` with the one that should be the first to take the train role first: the other way round."""
    return order_for_rollout(slots)[::-1]


def _rollout_rank(slot: SlotView) -> tuple[int, float]:
    preference = {Role.ROLLOUT: 0, None: 1, Role.TRAIN: 2}[slot.prefer]
    bandwidth_per_flop = slot.figures.memory_bandwidth_gb_s / slot.figures.flops_tflops
    return preference, -bandwidth_per_flop
