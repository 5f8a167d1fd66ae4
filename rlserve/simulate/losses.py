"""Gangs that are lost, and gangs whose node leaves for a while, as they are in a run (``rlserve.controller.recovery``,
``departures``).

::

    failure    dead: what it made since its groups came to it is lost, a step is done again by the other trainers
               ──► its worker starts anew ──► the same role
    notice     leaving: emptied as in a move, lost where that takes longer than its grace ──► gone
               ──► later another gang of the type joins, to which the policy gives a role

The last trainer, the last replica and a gang that is being moved are spared: a run would end, or wait.
"""

from __future__ import annotations

import random
from dataclasses import replace

from rlserve.manager.gang_table import GangState
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.reallocation import Reallocation
from rlserve.simulate.scenario import LossRates

_HOUR_S = 3600.0
_LOOK_S = 1.0


class Losses:
    """Lets gangs fail and leave, by chance."""

    def __init__(self, clock: Clock, rates: LossRates, reallocation: Reallocation, *, seed: int) -> None:
        self.num_failures = 0
        self.num_notices = 0
        self._clock = clock
        self._rates = rates
        self._reallocation = reallocation
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
                self.num_notices += 1
                gang_id = chance.choice(gang_ids)
                self._reallocation.leaving.add(gang_id)
                self._clock.start(self._empty(gang_id))
                self._clock.start(self._expire(gang_id))

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

    def _empty(self, gang_id: str) -> Process:
        reallocation = self._reallocation
        while gang_id in reallocation.leaving:
            yield from reallocation.take_turn()
            if reallocation.may_leave(gang_id):
                yield from reallocation.give_up(gang_id, "its node leaves")
                if reallocation.table.state(gang_id) is GangState.IDLE:
                    self._be_gone(gang_id)
            reallocation.end_turn()
            yield _LOOK_S

    def _expire(self, gang_id: str) -> Process:
        yield self._rates.grace_s
        reallocation = self._reallocation
        while gang_id in reallocation.leaving:
            if reallocation.may_leave(gang_id):
                reallocation.lose(gang_id, "was not empty in time")
                self._be_gone(gang_id)
                return
            yield _LOOK_S

    def _be_gone(self, gang_id: str) -> None:
        self._reallocation.enter(gang_id, GangState.GONE, "its node has left")
        self._reallocation.leaving.discard(gang_id)
        self._clock.start(self._return(gang_id))

    def _return(self, gang_id: str) -> Process:
        yield self._rates.away_s
        name, _, number = gang_id.partition("+")
        gang = replace(self._reallocation.gangs[gang_id], id=f"{name}+{int(number or 0) + 1}")
        self._reallocation.add(gang)
