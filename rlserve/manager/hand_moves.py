"""Whether a move that a user asks for can be made. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.manager.policies.base import GangView
from rlserve.manager.roles import Role

_WORDS = {Role.TRAIN: "trains", Role.ROLLOUT: "rolls out"}


def find_obstacle(
    gang_id: str, role: Role, gangs: Sequence[GangView], legal_trainer_sizes: Sequence[int]
) -> str | None:
    """Why a gang cannot take a role now; None where it can, or has it. No move is under way."""
    gang = next(each for each in gangs if each.id == gang_id)
    if gang.leaving:
        return f"{gang_id} is being emptied and gets no other role"
    if not gang.alive or (gang.role is None and not gang.idle):
        return f"{gang_id} has lost a worker, or is starting: ask again when it has a role"
    if gang.role is role:
        return None
    if role is Role.TRAIN and not gang.may_train:
        return f"{gang_id} is on a spot machine, which trains only with pool.train_on_spot=true"
    staying = [each for each in gangs if each.alive and not each.leaving and each.id != gang_id]
    if gang.role is not None and not any(each.role is gang.role for each in staying):
        return f"{gang_id} is the last that {_WORDS[gang.role]}, and a run needs one"
    num_train = sum(each.role is Role.TRAIN for each in staying) + (role is Role.TRAIN)
    if num_train not in legal_trainer_sizes:
        return f"the trainer cannot run on {num_train} gangs"
    return None
