"""Which replicas start and which end, so that as many are there as are wanted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from rlserve.serving.replicas.state import ReplicaState

_ENDING_ORDER = {ReplicaState.LOST: 0, ReplicaState.STARTING: 1, ReplicaState.SUSPECT: 2, ReplicaState.READY: 3}
"""Of replicas that count as there: those that cost least to be without come first."""


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """Names of replicas."""

    kept: tuple[str, ...] = ()
    """They drain, and are wanted again."""
    started: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    """To be drained, or not to be waited for."""


def resizing(
    states: Mapping[str, ReplicaState],
    num_samples: Mapping[str, int],
    num_wanted: int,
    drained: AbstractSet[str] = frozenset(),
) -> Resizing:
    """What to change. Those that drain are taken back before others are started, and of those that are ready the ones
    with the fewest samples go first. What gets no requests anyway ends before all others, and comes after them.

    Args:
        num_samples: under way, by replica.
        drained: those that get nothing new, because an operator says so.
    """
    there = [name for name, state in states.items() if state in _ENDING_ORDER]
    if len(there) > num_wanted:
        there.sort(key=lambda name: (name not in drained, _ENDING_ORDER[states[name]], num_samples[name]))
        return Resizing(ended=tuple(there[: len(there) - num_wanted]))
    draining = [name for name, state in states.items() if state is ReplicaState.DRAINING]
    idle = [name for name, state in states.items() if state is ReplicaState.IDLE]
    chosen = sorted((*draining, *idle), key=lambda name: name in drained)[: num_wanted - len(there)]
    return Resizing(
        kept=tuple(name for name in chosen if name in draining),
        started=tuple(name for name in chosen if name in idle),
    )
