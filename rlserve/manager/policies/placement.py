"""What every policy does first, since the set of gangs changes: give newcomers a role, and leave no role empty.

    a gang is idle, as its node has just joined          →  the role that it prefers, or the one that has fewer gangs
    nobody that stays has a role, or is on its way to it →  an idle gang takes it, or one of several in the other role

The second happens when nodes leave, and takes effect before those that leave are emptied. It waits for no cooldown.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.manager.policies.base import GangView, Move, Observation
from rlserve.manager.policies.ordering import order_for_rollout, order_for_training
from rlserve.manager.roles import Role

_ORDERS = {Role.TRAIN: order_for_training, Role.ROLLOUT: order_for_rollout}


def needed_move(observation: Observation, fewest_rollout: int, most_rollout: int) -> tuple[Move, str] | None:
    """The move that the rules above ask for, with its reason; None where they ask for none.

    ``fewest_rollout`` and ``most_rollout`` are limits for the staying gangs.
    """
    if observation.moving:
        return None
    present = observation.staying
    by_role = {role: [gang for gang in present if gang.role is role] for role in Role}
    idle = [gang for gang in present if gang.idle]
    on_their_way = any(
        not gang.leaving and (not gang.alive or (gang.role is None and not gang.idle)) for gang in observation.gangs
    )
    for role, other in ((Role.TRAIN, Role.ROLLOUT), (Role.ROLLOUT, Role.TRAIN)):
        if by_role[role] or on_their_way:
            continue
        candidates = idle or (by_role[other] if len(by_role[other]) > 1 else [])
        if role is Role.TRAIN:
            candidates = [gang for gang in candidates if gang.may_train]
        if candidates:
            gang = _ORDERS[role](candidates)[0]
            return Move(gang_id=gang.id, to=role), f"no {observation.unit} that stays has the {role} role"
    if idle:
        gang = min(idle, key=lambda each: each.id)
        role = _role_for(gang, by_role[Role.TRAIN], by_role[Role.ROLLOUT], (fewest_rollout, most_rollout))
        if role is Role.ROLLOUT or len(by_role[Role.TRAIN]) + 1 in observation.legal_trainer_sizes:
            return Move(gang_id=gang.id, to=role), f"a new {observation.unit}"
    return None


def _role_for(gang: GangView, train: Sequence[GangView], rollout: Sequence[GangView], bounds: tuple[int, int]) -> Role:
    fewest, most = bounds
    if not gang.may_train or len(rollout) < fewest:
        return Role.ROLLOUT
    if len(rollout) >= most:
        return Role.TRAIN
    return gang.prefer or (Role.ROLLOUT if len(rollout) <= len(train) else Role.TRAIN)
