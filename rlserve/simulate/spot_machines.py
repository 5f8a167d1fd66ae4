"""Spot machines that come and go as their zones have them.

::

    fewer to be had ──► some gangs of the zone, by chance, get their notice ──► gone
    more to be had  ──► as many machines start ──► their gangs join, and the policy gives them a role
"""

from __future__ import annotations

import random
from dataclasses import replace

from rlserve.manager.gang_table import GangState
from rlserve.manager.policies.base import GangView
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.departures import Departures
from rlserve.simulate.markets.base import Zone
from rlserve.simulate.reallocation import Reallocation

_ROUNDING = 1e-9


class SpotMachines:
    """Follows zones."""

    def __init__(
        self, clock: Clock, reallocation: Reallocation, departures: Departures, *, start_s: float, seed: int
    ) -> None:
        """``start_s``: of a machine that can be had, until its gang has joined."""
        self._clock = clock
        self._reallocation = reallocation
        self._departures = departures
        self._start_s = start_s
        self._seed = seed

    def follow(self, zone: Zone) -> None:
        """From now on. All gangs of the zone are there."""
        self._clock.start(self._follow(zone))

    def _follow(self, zone: Zone) -> Process:
        chance = random.Random(f"{self._seed} {zone.name}")
        here, away = list(zone.gang_ids), list[GangView]()
        for wait_s, share in zone.availability.course(zone.offset_s):
            yield wait_s
            num_wanted = int(share * len(zone.gang_ids) + _ROUNDING)
            while len(here) > num_wanted:
                gang_id = here.pop(chance.randrange(len(here)))
                away.append(self._reallocation.gangs[gang_id])
                self._departures.leave(gang_id, on_gone=_forget)
            while len(here) < num_wanted:
                gang = next_gang(away.pop(0))
                here.append(gang.id)
                self._clock.start(self._join(gang))

    def _join(self, gang: GangView) -> Process:
        self._reallocation.add(gang)
        yield self._start_s
        self._reallocation.enter(gang.id, GangState.IDLE, "its node has joined")


def next_gang(gang: GangView) -> GangView:
    """One like it, on another node: numbers of gangs are never used twice."""
    name, _, number = gang.id.partition("+")
    return replace(gang, id=f"{name}+{int(number or 0) + 1}")


def _forget(gang_id: str) -> None:
    """Its zone has counted it out with its notice."""
