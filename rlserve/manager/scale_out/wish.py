"""How many gangs of the types that may be asked for a run has use for.

By rates, once they are measured: what the best split of the pool would train with one node more, then one more again,
as long as each brings enough for what it costs (``scale_out.min_return``). Before that, and where the policy predicts
nothing, by the queue: as many replicas more as would take all prompt groups that wait, while the trainer waits for
batches. Clients that wait are added to either, since no rate of training tells of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from rlserve.manager.policies.base import GangView, Observation
from rlserve.manager.policies.ordering import order_for_rollout
from rlserve.manager.policies.rate_memory import RateState
from rlserve.manager.prediction.model import SplitModel, split_model
from rlserve.manager.prediction.splits import Split, split_now
from rlserve.manager.roles import Role
from rlserve.manager.scale_out.base import NodeType, Terms

_MIN_WAIT_SHARE = 0.05
"""Of the trainer's time: with less it has all that it can take."""
_KEEPS = 0.5
"""Share of the least return that is enough to keep a node."""
_MAX_STEPS = 8
"""Nodes more, or fewer, that are looked at in one decision."""
_TOGETHER = 4
"""Nodes that are looked at as one, at most."""
_NUM_SPLITS = 12
"""Numbers of trainers that are tried at first; then those beside the best."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the run has use for."""

    num_gangs: int | None
    """Of the types that may be asked for; None where it cannot be said."""
    why: str


def wish_of(
    observation: Observation,
    memory: RateState,
    terms: Terms,
    asked: Mapping[str, int],
    *,
    other_price_per_hour: float | None,
) -> Wish:
    """What the run has use for now.

    Args:
        observation: the run.
        memory: of how full engines are, fed with every observation (``note_observation``).
        terms: what may be asked for.
        asked: nodes that are, by type.
        other_price_per_hour: of all slots of other types; None counts slots in place of money.
    """
    if observation.queue_length is None:
        return Wish(num_gangs=None, why="the queue could not be read")
    names = {each.name for each in terms.types}
    num_here = sum(gang.type in names for gang in observation.staying)
    room = max(1, observation.admission.max_samples_per_replica // observation.admission.samples_per_prompt)
    wish = _by_rates(observation, memory, terms, asked, other_price_per_hour) if terms.by_rates else None
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
    observation: Observation, memory: RateState, terms: Terms, asked: Mapping[str, int], other_price: float | None
) -> Wish | None:
    """None where too little is measured."""
    now, ladder = split_now(observation), terms.ladder(asked)
    if not now.rollout or not now.train:
        return None
    # The model must know types of which no gang is there yet.
    to_come = tuple(_gang(each, f"to come/{each.name}") for each in terms.types)
    model = split_model(replace(observation, gangs=(*observation.gangs, *to_come)), now, memory.running_share)
    if isinstance(model, str):
        return None
    names = {each.name for each in terms.types}
    others = [gang for gang in observation.staying if gang.type not in names]
    priced = other_price is not None and all(each.price_per_hour is not None for each in terms.types)

    @cache
    def rate(number: int) -> float:
        gangs = [
            _gang(node, f"{index}/{gang}")
            for index, node in enumerate(ladder[:number])
            for gang in range(node.num_gangs)
        ]
        return _best_rate(model, [*others, *gangs])

    def paid(number: int) -> float:
        if priced:
            return (other_price or 0.0) + sum(node.price_per_hour or 0.0 for node in ladder[:number])
        return sum(gang.num_slots for gang in others) + sum(node.num_slots for node in ladder[:number])

    def brings(first: int, last: int) -> float:
        """The return of the nodes between two numbers of them."""
        before, after, cost = rate(first), rate(last), paid(last) - paid(first)
        if before <= 0.0 or cost <= 0.0:
            return math.inf if after > before else 0.0
        return (after / before - 1.0) * paid(first) / cost

    num_asked = sum(asked.values())
    number = _climb(brings, num_asked, len(ladder), terms.min_return)
    num_gangs = sum(node.num_gangs for node in ladder[:number])
    most = min(len(ladder), number + _TOGETHER)
    last = max((brings(number, more) for more in range(number + 1, most + 1)), default=None)
    return Wish(num_gangs=num_gangs, why=_in_words(number, last, "paid" if priced else "of slots"))


def _climb(brings: Callable[[int, int], float], num_asked: int, most: int, min_return: float) -> int:
    """How many nodes pay. Whole gangs make whole steps: one node may bring nothing before another is there too, so up
    to four are looked at together."""
    number = num_asked
    while number < min(most, num_asked + _MAX_STEPS):
        worth = [
            more for more in range(number + 1, min(most, number + _TOGETHER) + 1) if brings(number, more) >= min_return
        ]
        if not worth:
            break
        number = worth[0]
    if number > num_asked:
        return number
    while number > max(0, num_asked - _MAX_STEPS):
        spare = [
            fewer for fewer in range(max(0, number - _TOGETHER), number) if brings(fewer, number) < _KEEPS * min_return
        ]
        if not spare:
            break
        number = spare[-1]
    return number


def _in_words(number: int, last: float | None, paid: str) -> str:
    """``last``: what another would bring; None where no other may be asked for."""
    nodes = f"{number} more node{'' if number == 1 else 's'} pay{'s' if number == 1 else ''}"
    if last is None:
        return f"{nodes}, all that may be asked for"
    return f"{nodes}: another would bring {last:.2f} % more training for 1 % more {paid}"


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


def _gang(node: NodeType, name: str) -> GangView:
    return GangView(
        id=name,
        type=node.name,
        num_slots=node.num_slots // node.num_gangs,
        figures=node.figures,
        prefer=Role.ROLLOUT,
        may_train=node.may_train,
    )
