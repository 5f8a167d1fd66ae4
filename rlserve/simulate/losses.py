"""Gangs that are lost, and gangs whose node leaves for a while, as they are in a run (``rlserve.controller.recovery``,
``departures``).

::

    failure    dead: what it made since its groups came to it is lost, a step is done again by the other trainers
               ──► its worker starts anew ──► the same role
    notice     leaving ──► gone (``departures.py``) ──► later another gang of the type joins, to which the policy gives
               a role

The last trainer, the last replica and a gang that is being moved are spared: a run would end, or wait.
"""

from __future__ import annotations

import random

from rlserve.manager.gang_table import GangState
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.departures import Departures
from rlserve.simulate.reallocation import Reallocation
from rlserve.simulate.scenario import LossRates
from rlserve.simulate.spot_machines import next_gang

_HOUR_S = 3600.0


class Losses:
    """Lets gangs fail and leave, by chance."""

    def __init__(
        self, clock: Clock, rates: LossRates, reallocation: Reallocation, departures: Departures, *, seed: int
    ) -> None:
        self.num_failures = 0
        self._clock = clock
        self._rates = rates
        self._reallocation = reallocation
        self._departures = departures
        self._seed = seed

    def begin(self) -> None:
        """From now on."""
        if self._rates.failures_per_hour:
            self._clock.start(self._fail(random.Random(f"{self._seed} failures")))
        if self._rates.notices_per_hour:
            self._clock.start(self._notify(random.Random(f"{self._seed} notices")))

    def _fail(self, chance: random.Random) -> Process:
        while True:
            yield chance.expovariate(self._rates.failures_per_hour / _HOUR_S)
            gang_ids = self._reallocation.spare_gangs()
            if gang_ids:
                self.num_failures += 1
                self._clock.start(self._replace(chance.choice(gang_ids)))

    def _notify(self, chance: random.Random) -> Process:
        while True:
            yield chance.expovariate(self._rates.notices_per_hour / _HOUR_S)
            gang_ids = self._reallocation.spare_gangs()
            if gang_ids:
                self._departures.leave(
                    chance.choice(gang_ids), on_gone=lambda gang_id: self._clock.start(self._return(gang_id))
                )

    def _replace(self, gang_id: str) -> Process:
        reallocation = self._reallocation
        role = reallocation.lose(gang_id, "failed")
        reallocation.enter(gang_id, GangState.STARTING, "new worker")
        yield self._rates.restart_s
        reallocation.enter(gang_id, GangState.IDLE, "worker is up")
        yield from reallocation.take_turn()
        if reallocation.table.state(gang_id) is GangState.IDLE:  # else the policy was quicker
            yield from reallocation.take(gang_id, role, "replaces a lost worker")
        reallocation.end_turn()

    def _return(self, gang_id: str) -> Process:
        yield self._rates.away_s
        gang = next_gang(self._reallocation.gangs[gang_id])
        self._reallocation.add(gang)
        self._reallocation.enter(gang.id, GangState.IDLE, "its node has joined")
