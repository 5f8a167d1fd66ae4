"""Splits that can be reached from the one there is, one gang at a time in the order of unlike types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlserve.manager.policies.base import GangView, Observation
from rlserve.manager.policies.ordering import order_for_rollout, order_for_training
from rlserve.manager.prediction.curves import Counts
from rlserve.manager.roles import Role

_NUM_NEAR = 8
"""So many moves away every split is looked at; further off, one in so many."""
_FAR_STEP = 1.2


@dataclass(frozen=True, kw_only=True)
class Split:
    """Gangs in each role, by type."""

    rollout: Counts
    train: Counts

    def __hash__(self) -> int:
        return hash((frozenset(self.rollout.items()), frozenset(self.train.items())))

    @property
    def num_rollout(self) -> int:
        """Gangs in rollout."""
        return sum(self.rollout.values())


@dataclass(frozen=True, kw_only=True)
class Direction:
    """The splits that moves to one role lead to."""

    to: Role
    gangs: tuple[GangView, ...]
    """In the order in which they move."""
    splits: tuple[tuple[int, Split], ...]
    """How many of them have moved, and the split then; the nearest first."""


def split_now(observation: Observation) -> Split:
    """Of the gangs that live and stay."""
    return _split(observation.staying)


def directions(observation: Observation, fewest_rollout: int, most_rollout: int) -> tuple[Direction, Direction]:
    """To rollout and to training, within the limits and over legal numbers of trainers only."""
    present = observation.staying
    train = order_for_rollout(gang for gang in present if gang.role is Role.TRAIN)
    rollout = order_for_training(gang for gang in present if gang.role is Role.ROLLOUT)
    legal = frozenset(observation.legal_trainer_sizes)
    now = _split(present)
    to_rollout = _num_legal(len(train), -1, min(len(train) - 1, most_rollout - len(rollout)), legal)
    to_train = _num_legal(len(train), 1, min(len(rollout) - 1, len(rollout) - fewest_rollout), legal)
    return (
        Direction(to=Role.ROLLOUT, gangs=tuple(train), splits=tuple(_reached(now, train, to_rollout))),
        Direction(to=Role.TRAIN, gangs=tuple(rollout), splits=tuple(_reached(now, rollout, to_train))),
    )


def _num_legal(num_train: int, step: int, most: int, legal: frozenset[int]) -> int:
    """How many moves can be made in a row: after each the trainer runs."""
    num_moves = 0
    while num_moves < most and num_train + (num_moves + 1) * step in legal:
        num_moves += 1
    return num_moves


def _reached(now: Split, gangs: Sequence[GangView], num_moves: int) -> Iterator[tuple[int, Split]]:
    to_rollout = bool(gangs) and gangs[0].role is Role.TRAIN
    moved, num_moved = Counter[str](), 0
    for number in _looked_at(num_moves):
        moved.update(gang.type for gang in gangs[num_moved:number])
        num_moved = number
        gained, lost = (now.rollout, now.train) if to_rollout else (now.train, now.rollout)
        more = dict(Counter(gained) + moved)
        fewer = dict(Counter(lost) - moved)
        yield number, Split(rollout=more, train=fewer) if to_rollout else Split(rollout=fewer, train=more)


def _looked_at(num_moves: int) -> Iterator[int]:
    number = 1
    while number <= num_moves:
        yield number
        number = number + 1 if number < _NUM_NEAR else max(number + 1, round(number * _FAR_STEP))


def _split(gangs: Sequence[GangView]) -> Split:
    return Split(
        rollout=Counter(gang.type for gang in gangs if gang.role is Role.ROLLOUT),
        train=Counter(gang.type for gang in gangs if gang.role is Role.TRAIN),
    )
