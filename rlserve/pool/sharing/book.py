"""What the broker knows of the runs of its cluster, and what it answers them. No process, no clock.

Nothing of it needs to last: each run says with every claim what it has and what it was told that it may have. So a
broker that is lost is replaced by an empty one.

::

    a claim ──► who may begin ──► shares by type (``shares``) ──► by node: what to give up, or what is free for it

What one run gives up is another's once nobody has it: by the books, in which a run has what it was told that it may
have until it says that it does not; and by Ray, whose own resources are free only when the worker process is gone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from rlserve.pool.gangs import Node
from rlserve.pool.sharing.base import Allowance, Claim, HeldSlots, Neighbour, Place, by_type
from rlserve.pool.sharing.loans import Loans
from rlserve.pool.sharing.packing import Part, pack
from rlserve.pool.sharing.shares import Asking, Wish, admitted, shares_of
from rlserve.pool.sharing.strangers import Strangers

QUIET_S = 3.0
"""After which it is asked whether a run's controller lives."""
SILENT_S = 60.0
"""After which a run is taken for gone whatever Ray says. What it still has is nobody's until Ray has it back."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What Ray says of its nodes."""

    nodes: Sequence[Node]
    free: Mapping[Place, int]
    """Slots that no process has."""

    @property
    def slots(self) -> Mapping[Place, int]:
        """All of them, but for those of nodes that are about to leave."""
        return {
            (node.id, type_name): count
            for node in self.nodes
            if not node.is_draining
            for type_name, count in node.counts.items()
        }


class SharingBook:
    """Owns the claims of all runs."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}
        """The first come first."""
        self._heard_s: dict[str, float] = {}
        self._loans: defaultdict[str, Loans] = defaultdict(Loans)
        """By type."""
        self._waiting = set[str]()
        """Runs that have not begun: what they may take is free still."""
        self._strangers = Strangers()

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs that share the cluster."""
        return tuple(self._claims)

    def renew(self, claim: Claim, *, now_s: float) -> None:
        """A run lives, and claims what it did."""
        self._heard_s[claim.run_id] = now_s
        self._claims.setdefault(claim.run_id, claim)

    def quiet(self, now_s: float) -> tuple[str, ...]:
        """Ray's jobs of runs that have not been heard for a while."""
        return tuple(
            self._claims[run_id].job_id for run_id, heard_s in self._heard_s.items() if now_s - heard_s >= QUIET_S
        )

    def expire(self, now_s: float, *, ended_jobs: Collection[str]) -> tuple[Claim, ...]:
        """Forget the runs that are gone: quiet ones whose job has ended, and silent ones."""
        gone = [
            self._claims[run_id]
            for run_id, heard_s in self._heard_s.items()
            if now_s - heard_s >= SILENT_S or (now_s - heard_s >= QUIET_S and self._claims[run_id].job_id in ended_jobs)
        ]
        for claim in gone:
            self.forget(claim.run_id)
        return tuple(gone)

    def forget(self, run_id: str) -> None:
        """A run has ended."""
        self._claims.pop(run_id, None)
        self._heard_s.pop(run_id, None)
        self._waiting.discard(run_id)
        for loans in self._loans.values():
            loans.forget(run_id)

    def answer(self, claim: Claim, cluster: Cluster, *, now_s: float) -> Allowance:
        """A run claims anew: what it may have now."""
        slots, run_id = cluster.slots, claim.run_id
        for type_name, lost in by_type({place: n for place, n in claim.allowed.items() if place not in slots}).items():
            self._loans[type_name].lose(run_id, lost)
        holding = HeldSlots(
            held=_within(claim.holding.held, slots),
            lendable=_within(claim.holding.lendable, slots),
            leaving=_within(claim.holding.leaving, slots),
        )
        claim = replace(claim, allowed=_within(claim.allowed, slots), holding=holding)
        self._heard_s[run_id], self._claims[run_id] = now_s, claim
        slots = self._without_strangers(slots, cluster.free, now_s)
        totals = by_type(slots)
        may_begin = self._may_begin(slots)
        allowed: dict[Place, int] = {}
        shares = self._shares(slots, may_begin)
        for type_name in shares.get(run_id, {}):
            allowed |= self._places(claim, type_name, shares, slots, cluster.free)
        self._claims[run_id] = replace(claim, allowed=allowed)
        have, floors = by_type(allowed), _floors(claim, slots)
        for type_name in totals:
            self._loans[type_name].note(run_id, have[type_name])
        begins = run_id in may_begin and all(have[name] >= count for name, count in floors.items())
        if begins or claim.holding.held:
            self._waiting.discard(run_id)
        else:
            self._waiting.add(run_id)
        return Allowance(
            slots=allowed,
            begins=begins,
            obstacle=self._obstacle(claim, slots, is_admitted=run_id in may_begin),
            num_lent=sum(loans.num_lent(run_id) for loans in self._loans.values()),
            num_borrowed=sum(loans.num_borrowed(run_id) for loans in self._loans.values()),
            num_owed=sum(max(share - have[name], 0) for name, share in shares.get(run_id, {}).items()),
            neighbours=tuple(
                Neighbour(name=other.name, priority=other.priority, num_slots=sum(_taken(other).values()))
                for other in self._claims.values()
                if other.run_id != run_id
            ),
        )

    def _may_begin(self, slots: Mapping[Place, int]) -> frozenset[str]:
        """Runs that have begun, or may."""
        begun = {run_id: claim for run_id, claim in self._claims.items() if any(_taken(claim).values())}
        asking = [
            Asking(run_id=run_id, priority=claim.priority, floors=_floors(claim, slots))
            for run_id, claim in self._claims.items()
            if run_id not in begun
        ]
        may = admitted([_floors(claim, slots) for claim in begun.values()], asking, by_type(slots))
        return frozenset([*begun, *(each.run_id for each in may)])

    def _shares(self, slots: Mapping[Place, int], may_begin: Collection[str]) -> dict[str, dict[str, int]]:
        """By run and type."""
        shares: dict[str, dict[str, int]] = {}
        useful = {run_id: self._claims[run_id].useful for run_id in may_begin}
        for type_name, num_slots in by_type(slots).items():
            wishes = [
                _wish(claim, type_name, _usable(claim, slots)[type_name], useful[run_id])
                for run_id, claim in self._claims.items()
                if run_id in may_begin
            ]
            for run_id, share in shares_of(wishes, num_slots).items():
                shares.setdefault(run_id, {})[type_name] = share
                if (left := useful[run_id]) is not None:  # of all types together
                    useful[run_id] = max(left - share, 0)
        return shares

    def _without_strangers(
        self, slots: Mapping[Place, int], free: Mapping[Place, int], now_s: float
    ) -> Mapping[Place, int]:
        """The slots that can be shared: nobody can give up what a stranger has."""
        known = Counter[Place]()
        for run_id, claim in self._claims.items():
            if run_id not in self._waiting:
                known.update(_taken(claim))
        unexplained = {place: max(count - free.get(place, 0) - known[place], 0) for place, count in slots.items()}
        self._strangers.note(unexplained, now_s=now_s)
        strange = self._strangers.slots
        return {place: count - strange.get(place, 0) for place, count in slots.items()}

    def _places(
        self,
        claim: Claim,
        type_name: str,
        shares: Mapping[str, Mapping[str, int]],
        slots: Mapping[Place, int],
        free: Mapping[Place, int],
    ) -> dict[Place, int]:
        """Where a run may have its share of the slots of a type: what it keeps of what it has, and what nobody has."""
        places = {place: count for place, count in slots.items() if place[1] == type_name}
        parts = [_part(self._claims[run_id], of_run[type_name]) for run_id, of_run in shares.items()]
        wanted = pack(parts, places, free)[claim.run_id]
        allowed: dict[Place, int] = {}
        others = [other for other in self._claims.values() if other.run_id != claim.run_id]
        for place, count in places.items():
            held = claim.holding.held.get(place, 0)
            taken = sum(_taken(other).get(place, 0) for other in others)
            promised = taken - sum(other.holding.held.get(place, 0) for other in others)
            more = min(wanted[place] - held, count - taken - held, free.get(place, 0) - promised)
            allowed[place] = min(held, wanted[place]) + max(more, 0) // claim.gang_size * claim.gang_size
        return allowed

    def _obstacle(self, claim: Claim, slots: Mapping[Place, int], *, is_admitted: bool) -> str:
        """Why a run that has not begun cannot yet."""
        floors = {name: count for name, count in _floors(claim, slots).items() if count}
        if not floors:
            return "its floor is 0 slots of every type that the cluster has"
        others = [other for other in self._claims.values() if other.run_id != claim.run_id]
        if is_admitted:
            having = [f"{other.name} has {sum(_taken(other).values())}" for other in others]
            return f"its floor ({_words(floors)}) is being freed: {', '.join(having) or 'other processes have it'}"
        taken = ", ".join(f"{other.name} {_words(_floors(other, slots))}" for other in others)
        return (
            f"its floor is {_words(floors)}, and the floors of others leave less of {_words(by_type(slots))}: {taken}"
        )


def _taken(claim: Claim) -> Mapping[Place, int]:
    """What a run has or may take."""
    held, allowed = claim.holding.held, claim.allowed
    return {place: max(held.get(place, 0), allowed.get(place, 0)) for place in {**held, **allowed}}


def _usable(claim: Claim, slots: Mapping[Place, int]) -> Counter[str]:
    """Slots by type that whole gangs of a run have room for."""
    return by_type({place: count // claim.gang_size * claim.gang_size for place, count in slots.items()})


def _floors(claim: Claim, slots: Mapping[Place, int]) -> dict[str, int]:
    return {name: claim.floor_of(name, count) for name, count in _usable(claim, slots).items()}


def _within(slots: Mapping[Place, int], there: Mapping[Place, int]) -> dict[Place, int]:
    return {place: count for place, count in slots.items() if place in there}


def _wish(claim: Claim, type_name: str, num_slots: int, useful: int | None) -> Wish:
    held = by_type({place: count for place, count in claim.holding.held.items() if place[1] == type_name})
    lendable = by_type({place: count for place, count in claim.holding.lendable.items() if place[1] == type_name})
    return Wish(
        run_id=claim.run_id,
        priority=claim.priority,
        floor=claim.floor_of(type_name, num_slots),
        useful=useful,
        most=min(num_slots, num_slots if (limit := claim.limit(type_name)) is None else limit),
        held=held[type_name],
        num_lendable=lendable[type_name],
        gang_size=claim.gang_size,
    )


def _part(claim: Claim, share: int) -> Part:
    holding = claim.holding
    has = {place: claim.allowed.get(place, count) for place, count in holding.held.items()}
    told = {place: max(count - has[place], 0) for place, count in holding.held.items()}
    return Part(
        run_id=claim.run_id,
        share=share,
        gang_size=claim.gang_size,
        priority=claim.priority,
        has={**claim.allowed, **has},
        lendable={place: max(count - told.get(place, 0), 0) for place, count in holding.lendable.items()},
        leaving={place: max(count - told.get(place, 0), 0) for place, count in holding.leaving.items()},
    )


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in counts.items() if count) or "nothing"
