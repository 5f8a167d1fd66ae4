"""Which gangs begin as train and which as rollout. Pure, so that ``--dry-run`` shows what a run would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlserve.errors import PoolError
from rlserve.manager.policies.base import GangView
from rlserve.manager.policies.ordering import order_for_rollout
from rlserve.manager.roles import Role


def initial_split(gangs: Sequence[GangView], num_initial_rollout: int | None) -> dict[str, Role]:
    """The first role of every gang, by gang id, in the order of ``gangs``.

    ``num_initial_rollout`` None takes the gangs that prefer rollout or may not train, or half of all where none does.

    Raises:
        PoolError: a role would be left without a gang, or a gang that may not train would.
    """
    unit = "gang" if any(gang.num_slots > 1 for gang in gangs) else "slot"
    if len(gangs) < 2:
        raise PoolError(
            f"the pool has {len(gangs)} {unit}(s), but it needs one to train and one to roll out; or take "
            f"pool.placement=colocated"
        )
    num_rollout = num_initial_rollout
    num_spot = sum(not gang.may_train for gang in gangs)
    if num_spot == len(gangs):
        raise PoolError(
            f"all {num_spot} {unit}s are on spot machines, which leaves none to train; add others, or let spot "
            f"machines train too (pool.train_on_spot=true)"
        )
    if num_rollout is None:
        prefer_rollout = sum(gang.prefer is Role.ROLLOUT or not gang.may_train for gang in gangs)
        num_rollout = prefer_rollout or len(gangs) // 2
        if num_rollout == len(gangs):
            raise PoolError(
                f"all {num_rollout} {unit}s prefer rollout, which leaves none to train; "
                f"set pool.num_initial_rollout or let some {unit}s prefer train"
            )
    if not 1 <= num_rollout < len(gangs):
        raise PoolError(
            f"pool.num_initial_rollout={num_rollout} of {len(gangs)} {unit}s leaves none to train; "
            f"it must be between 1 and {len(gangs) - 1}"
        )
    if num_rollout < num_spot:
        raise PoolError(
            f"pool.num_initial_rollout={num_rollout} would let some of the {num_spot} {unit}s on spot machines train; "
            f"it must be at least {num_spot}, or set pool.train_on_spot=true"
        )
    rollout = {gang.id for gang in order_for_rollout(gangs)[:num_rollout]}
    return {gang.id: Role.ROLLOUT if gang.id in rollout else Role.TRAIN for gang in gangs}


def resumed_split(first: Mapping[str, Role], before: Mapping[str, Role]) -> dict[str, Role]:
    """Roles after a resume: those that the gangs had ``before``, where they are the gangs of ``first``, the split of a
    run that begins anew. A gang that had none then has its first one, unless a role would be left without a gang.
    """
    resumed = {**first, **before}
    return resumed if resumed.keys() == first.keys() and len(set(resumed.values())) == 2 else dict(first)
