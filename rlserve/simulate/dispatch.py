"""Which replica gets which group: what ``rlserve.rollout.requests.router`` does for training requests, quickly.

A simulated hour asks a hundred thousand times. ``tests/unit/simulate/test_simulate_dispatch.py`` holds that both give
the same groups to the same replicas.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from rlserve.simulate.work import Group


@dataclass(eq=False, slots=True)
class _Place:
    """A replica as the dispatcher knows it."""

    version: int
    capacity: int
    num_samples: int = 0
    num_tokens: int = 0
    closed: bool = False
    held: dict[str, tuple[Group, int, int]] = field(default_factory=dict)
    """By id: the group, and the samples and tokens that it came with."""


class Dispatcher:
    """Waiting groups in order of position, and what each replica holds."""

    def __init__(self) -> None:
        self._waiting: list[Group] = []
        self._places: dict[str, _Place] = {}

    @property
    def num_waiting(self) -> int:
        """Groups that no replica has."""
        return len(self._waiting)

    @property
    def num_held(self) -> int:
        """Groups that replicas have."""
        return sum(len(place.held) for place in self._places.values())

    def join(self, replica_id: str, *, version: int, capacity: int) -> None:
        """A replica serves weights of ``version`` and may hold ``capacity`` samples."""
        assert replica_id not in self._places, f"{replica_id} is already there"
        self._places[replica_id] = _Place(version=version, capacity=capacity)

    def close(self, replica_id: str) -> None:
        """It is about to leave, and gets nothing more."""
        self._places[replica_id].closed = True

    def set_version(self, replica_id: str, version: int) -> None:
        """It serves newer weights."""
        self._places[replica_id].version = version

    def submit(self, group: Group) -> None:
        """A group waits."""
        bisect.insort(self._waiting, group, key=lambda each: each.position)

    def assign(self) -> list[tuple[str, Group]]:
        """Give waiting groups, in their order, to the least loaded of the replicas with room that are new enough."""
        assigned: list[tuple[str, Group]] = []
        if not self._waiting:
            return assigned
        open_places = [
            (replica_id, place)
            for replica_id, place in self._places.items()
            if not place.closed and place.num_samples < place.capacity
        ]
        if not open_places:
            return assigned
        left: list[Group] = []
        refused: tuple[int, int] | None = None
        """Samples and version of a group that found no place: one that asks for no less finds none either."""
        for group in self._waiting:
            num_samples = len(group.unfinished)
            if refused is None or num_samples < refused[0] or group.min_version < refused[1]:
                chosen = _least_loaded(open_places, num_samples, group.min_version)
                if chosen is not None:
                    replica_id, place = chosen
                    num_tokens = group.num_resumed_tokens
                    place.held[group.id] = (group, num_samples, num_tokens)
                    place.num_samples += num_samples
                    place.num_tokens += num_tokens
                    assigned.append((replica_id, group))
                    continue
                if refused is None:
                    refused = (num_samples, group.min_version)
            left.append(group)
        if assigned:
            self._waiting = left
        return assigned

    def finished(self, replica_id: str, group: Group) -> None:
        """A replica is done with a group."""
        place = self._places[replica_id]
        _, num_samples, num_tokens = place.held.pop(group.id)
        place.num_samples -= num_samples
        place.num_tokens -= num_tokens

    def left(self, replica_id: str) -> list[Group]:
        """Remove a replica; returns the groups that it had, which are the caller's to submit again."""
        return [group for group, _, _ in self._places.pop(replica_id).held.values()]


def _least_loaded(
    places: Iterable[tuple[str, _Place]], num_samples: int, min_version: int
) -> tuple[str, _Place] | None:
    best: tuple[str, _Place] | None = None
    best_load = (0.0, 0)
    for replica_id, place in places:
        load = place.num_samples
        if place.version >= min_version and (not load or load + num_samples <= place.capacity):
            key = (load / place.capacity, place.num_tokens)
            if best is None or key < best_load:
                best, best_load = (replica_id, place), key
    return best
