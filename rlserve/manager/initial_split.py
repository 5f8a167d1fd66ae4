"""Which slots begin as train and which as rollout. Pure, so that ``--dry-run`` shows what a run would do."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.errors import PoolError
from rlserve.manager.policies.base import Role, SlotView
from rlserve.manager.policies.ordering import order_for_rollout


def initial_split(slots: Sequence[SlotView], num_initial_rollout: int | None) -> dict[str, Role]:
    """The first role of every slot, by slot id, in the order of ``slots``.

    ``num_initial_rollout`` None takes the slots that prefer rollout, or half of all where none does.

    Raises:
        PoolError: a role would be left without a slot.
    """
    if len(slots) < 2:
        raise PoolError(f"the pool has {len(slots)} slot(s), but it needs one to train and one to roll out")
    num_rollout = num_initial_rollout
    if num_rollout is None:
        num_rollout = sum(slot.prefer is Role.ROLLOUT for slot in slots) or len(slots) // 2
        if num_rollout == len(slots):
            raise PoolError(
                f"all {num_rollout} slots prefer rollout, which leaves none to train; "
                f"set pool.num_initial_rollout or let some slots prefer train"
            )
    if not 1 <= num_rollout < len(slots):
        raise PoolError(
            f"pool.num_initial_rollout={num_rollout} of {len(slots)} slots leaves none to train; "
            f"it must be between 1 and {len(slots) - 1}"
        )
    rollout = {slot.id for slot in order_for_rollout(slots)[:num_rollout]}
    return {slot.id: Role.ROLLOUT if slot.id in rollout else Role.TRAIN for slot in slots}
