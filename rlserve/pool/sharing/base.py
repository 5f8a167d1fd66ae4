"""What a run and the broker of its cluster tell each other. Plain data.

::

    run ── Claim: has, could use, may be asked for ──► broker ── Allowance: what the run may have now ──► run
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

Place = tuple[str, str]
"""Ray's id of a node, and a type of slots on it."""


@dataclass(frozen=True, kw_only=True)
class HeldSlots:
    """What a run has, in slots of each place. Those that are being emptied are among them until they are free."""

    held: Mapping[Place, int] = field(default_factory=dict)
    lendable: Mapping[Place, int] = field(default_factory=dict)
    """Of these, what rolls out or has no role, but for the last gang that a role needs."""
    leaving: Mapping[Place, int] = field(default_factory=dict)
    """Of these, what is being emptied already."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A run, what it has and what it could use."""

    run_id: str
    """No other run has it, nor has this one when it is taken up again."""
    name: str
    """For people."""
    job_id: str
    """Ray's, of the run's controller: while that lives, the run does."""
    priority: int = 0
    floor: int = 0
    """Of each type."""
    floors: Mapping[str, int] = field(default_factory=dict)
    """Of types that have their own."""
    most: int | None = None
    """Of each type; None is without a bound."""
    counts: Mapping[str, int] | None = None
    """The slots by type that its pool is configured to have; None takes any."""
    gang_size: int = 1
    """Slots that are of use only together, on one node."""
    useful: int | None = None
    """Slots that it could use now, of all types together; None is as many as it gets."""
    holding: HeldSlots = field(default_factory=HeldSlots)
    allowed: Mapping[Place, int] = field(default_factory=dict)
    """What it was told last that it may have."""

    def limit(self, type_name: str) -> int | None:
        """Slots of a type that it takes at most; None is without a bound."""
        configured = None if self.counts is None else self.counts.get(type_name, 0)
        return min((bound for bound in (self.most, configured) if bound is not None), default=None)

    def floor_of(self, type_name: str, num_slots: int) -> int:
        """Its floor in slots of a type of which there are ``num_slots``, in whole gangs."""
        floor, limit = self.floors.get(type_name, self.floor), self.limit(type_name)
        least = min(floor, num_slots) if limit is None else min(floor, num_slots, limit)
        return least // self.gang_size * self.gang_size


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """Another run that shares the cluster."""

    name: str
    priority: int
    num_slots: int
    """That it has."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the broker answers a run."""

    slots: Mapping[Place, int]
    """That it may have now: what is above is asked back, what is below it may take."""
    begins: bool = True
    """Whether its floor is there, so that it may begin."""
    obstacle: str = ""
    """Why it may not."""
    num_lent: int = 0
    """Slots that others have because this run gave them up."""
    num_borrowed: int = 0
    """Slots that it has because others gave them up."""
    num_owed: int = 0
    """Slots of its share that it may not take yet: others have not given them up so far."""
    neighbours: tuple[Neighbour, ...] = ()


def by_type(slots: Mapping[Place, int]) -> Counter[str]:
    """Slots of each type, on all nodes together."""
    counts: Counter[str] = Counter()
    for (_, type_name), count in slots.items():
        counts[type_name] += count
    return counts
