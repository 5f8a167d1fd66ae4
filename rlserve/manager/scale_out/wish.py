"""How many gangs of the types that may be asked for a run has use for.

By rates, once they are measured: what the best split of the pool would train with one node more, then one more again,
as long as each brings enough for what it costs (``scale_out.min_return``). Before that, and where the policy predicts
nothing, by the queue: as many replicas more as would take all prompt groups that wait, while the trainer waits for
batches. Clients that wait are added to either, since no rate of training tells of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlserve.manager.policies.base import GangFigures, GangView, Observation
from rlserve.manager.policies.ordering import order_for_rollout
from rlserve.manager.policies.rate_memory import RateState
from rlserve.manager.prediction.model import SplitModel, split_model
from rlserve.manager.prediction.splits import Split, split_now
from rlserve.manager.roles import Role

_MIN_WAIT_SHARE = 0.05
"""Of the trainer's time: with less it has all that it can take."""
_KEEPS = 0.5
"""Share of the least return that is enough to keep a node."""
_MAX_STEPS = 8
"""Nodes more, or fewer, that are looked at in one decision."""
_NUM_SPLITS = 12
"""Numbers of trainers that are tried at first; then those beside the best."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One node more than with the rung before."""

    type: str
    num_gangs: int
    num_slots: int
    price_per_hour: float | None
    figures: GangFigures
    """Of one slot."""
    may_train: bool
    is_asked: bool
    """Asked for already, or there."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the run has use for."""

    num_gangs: int | None
    """Of the types that may be asked for; None where it cannot be said."""
    why: str


def wish_of(
    observation: Observation,
    memory: RateState,
    ladder: Sequence[Rung],
    *,
    min_return: float,
    other_price_per_hour: float | None,
    by_rates: bool,
) -> Wish:
    """What the run has use for now.

    Args:
        observation: the run.
        memory: of how full engines are, fed with every observation (``note_observation``).
        ladder: nodes in the order in which they are asked for, those first that are asked for already.
        min_return: as configured.
        other_price_per_hour: of all slots of other types; None counts slots in place of money.
        by_rates: whether the policy goes by rates too; else it is the queue alone.
    """
    scaled = {rung.type for rung in ladder}
    num_here = sum(gang.type in scaled for gang in observation.staying)
    if observation.queue_length is None:
        return Wish(num_gangs=None, why="the queue could not be read")
    room = max(1, observation.admission.max_samples_per_replica // observation.admission.samples_per_prompt)
    wish = _by_rates(observation, memory, ladder, min_return, other_price_per_hour) if by_rates else None
    if wish is None:
        wish = _by_queue(observation, num_here, room)
    num_clients = math.ceil(observation.client_queue / room)
    if num_clients and (wish.num_gangs or 0) < num_here + num_clients:
        why = f"{observation.client_queue:g} prompt groups' worth of clients wait"
        return Wish(num_gangs=num_here + num_clients, why=why)
    return wish


def _by_queue(observation: Observation, num_here: int, room: int) -> Wish:
    assert observation.queue_length is not None
    waiting, wait_share = observation.queue_length, observation.measured.wait_share
    trainer_waits = bool(observation.trainer_waiting) or (wait_share or 0.0) >= _MIN_WAIT_SHARE
    if waiting and not trainer_waits:
        return Wish(num_gangs=num_here, why=f"{waiting} prompt groups wait for a replica, and the trainer for none")
    if waiting:
        num_more = math.ceil(waiting / room)
        why = f"{waiting} prompt groups wait for a replica, each of which takes {room}, and the trainer for them"
        return Wish(num_gangs=num_here + num_more, why=why)
    most = max(1, observation.admission.max_samples_per_replica)
    samples = sum(replica.num_running + replica.num_waiting for replica in observation.measured.replicas)
    num_rollout = sum(gang.role is not Role.TRAIN for gang in observation.staying)  # those too that are about to
    num_spare = max(0, num_rollout - max(1, math.ceil(samples / most)))
    why = f"no prompt group waits for a replica, and {samples} samples would fit {num_rollout - num_spare} of them"
    return Wish(num_gangs=max(0, num_here - num_spare), why=why)


def _by_rates(
    observation: Observation,
    memory: RateState,
    ladder: Sequence[Rung],
    min_return: float,
    other_price: float | None,
) -> Wish | None:
    """None where too little is measured."""
    now = split_now(observation)
    if not now.rollout or not now.train or not ladder:
        return None
    # The model must know types of which no gang is there yet.
    to_come = tuple(_gang(rung, f"to come/{index}") for index, rung in enumerate(ladder))
    model = split_model(replace(observation, gangs=(*observation.gangs, *to_come)), now, memory.running_share)
    if isinstance(model, str):
        return None
    scaled = {rung.type for rung in ladder}
    others = [gang for gang in observation.staying if gang.type not in scaled]
    priced = other_price is not None and all(rung.price_per_hour is not None for rung in ladder)

    def rate(num_rungs: int) -> float:
        gangs = [
            _gang(rung, f"{index}/{each}")
            for index, rung in enumerate(ladder[:num_rungs])
            for each in range(rung.num_gangs)
        ]
        return _best_rate(model, [*others, *gangs])

    def paid(num_rungs: int) -> float:
        if priced:
            return (other_price or 0.0) + sum(rung.price_per_hour or 0.0 for rung in ladder[:num_rungs])
        return sum(gang.num_slots for gang in others) + sum(rung.num_slots for rung in ladder[:num_rungs])

    def brings(num_rungs: int) -> float:
        """The return of the last of so many nodes."""
        before, after = rate(num_rungs - 1), rate(num_rungs)
        if before <= 0.0:
            return math.inf if after > 0.0 else 0.0
        cost = paid(num_rungs) / max(paid(num_rungs - 1), 1e-9) - 1.0
        return (after / before - 1.0) / cost if cost > 0.0 else math.inf

    num_asked = sum(rung.is_asked for rung in ladder)
    number, last = _climb(brings, num_asked, len(ladder), min_return)
    num_gangs = sum(rung.num_gangs for rung in ladder[:number])
    what = "per cent more trained for one per cent more paid" if priced else "per cent more trained for one of slots"
    return Wish(
        num_gangs=num_gangs, why=f"{number} nodes of those that may be asked for pay: the next brings {last:.2f} {what}"
    )


def _climb(brings: Callable[[int], float], num_asked: int, most: int, min_return: float) -> tuple[int, float]:
    """How many nodes pay, and what the next after them would bring."""
    number = num_asked
    while number < min(most, num_asked + _MAX_STEPS):
        last = brings(number + 1)
        if last < min_return:
            break
        number += 1
    if number > num_asked:
        return number, brings(number + 1) if number < most else 0.0
    last = brings(number + 1) if number < most else 0.0
    while number > max(0, num_asked - _MAX_STEPS):
        of_this = brings(number)
        if of_this >= _KEEPS * min_return:
            break
        number, last = number - 1, of_this
    return number, last


def _best_rate(model: SplitModel, gangs: Sequence[GangView]) -> float:
    """Of the pool with the best split; 0 where one of the roles would be empty."""
    ordered = order_for_rollout(gangs)
    most = min(len(ordered) - 1, sum(gang.may_train for gang in ordered))
    if most < 1:
        return 0.0
    stride = math.ceil(most / _NUM_SPLITS)
    found = {number: _rate(model, ordered, number) for number in range(1, most + 1, stride)}
    best = max(found, key=lambda number: found[number])
    near = range(max(1, best - stride + 1), min(most, best + stride - 1) + 1)
    return max([found[best], *(_rate(model, ordered, number) for number in near if number not in found)])


def _rate(model: SplitModel, ordered: Sequence[GangView], num_train: int) -> float:
    num_rollout = len(ordered) - num_train
    return model.rates(
        Split(
            rollout=Counter(gang.type for gang in ordered[:num_rollout]),
            train=Counter(gang.type for gang in ordered[num_rollout:]),
        )
    ).rate


def _gang(rung: Rung, name: str) -> GangView:
    num_slots = rung.num_slots // rung.num_gangs
    return GangView(
        id=name,
        type=rung.type,
        num_slots=num_slots,
        figures=rung.figures,
        prefer=Role.ROLLOUT,
        may_train=rung.may_train,
    )
