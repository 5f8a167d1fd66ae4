"""Versions of the weights on their way to the replicas, beside the training, as ``rlserve.controller.weight_sync``.

Each replica takes the newest version at its own pace; versions that came meanwhile are skipped. Which of them is the
first is chance, and matters: groups that wait for a new version go to whoever has it.
"""

from __future__ import annotations

import random
from functools import partial

from rlserve.manager.measurement.readings import SyncDone
from rlserve.simulate.clock import Clock
from rlserve.simulate.costs.base import Costs
from rlserve.simulate.generation import Generation
from rlserve.simulate.journal import Journal
from rlserve.simulate.replica import Replica
from rlserve.simulate.scenario import Overheads


class Weights:
    """Knows the newest version and who is taking one."""

    def __init__(
        self, clock: Clock, costs: Costs, journal: Journal, generation: Generation, *, overheads: Overheads, chance: int
    ) -> None:
        """``overheads`` come on top of the time that a version takes on the wire."""
        self.version = 0
        self._overhead_s = overheads.sync_s
        self._random = random.Random(f"{chance} weights")
        self._clock = clock
        self._costs = costs
        self._journal = journal
        self._generation = generation
        self._taking: set[Replica] = set()

    def publish(self, version: int) -> None:
        """A version is there: all replicas take it that take none now."""
        self.version = version
        for replica in self._generation.replicas.values():
            self.bring_up(replica)

    def bring_up(self, replica: Replica) -> None:
        """Let a replica take the newest version, unless it has it, or takes one."""
        if replica.version < self.version and replica not in self._taking:
            self._taking.add(replica)
            self._clock.after(
                self._costs.weights_s(replica.type_name) + self._overhead_s * self._random.uniform(0.5, 1.5),
                partial(self._arrived, replica, self.version, self._clock.now_s),
            )

    def _arrived(self, replica: Replica, version: int, offered_s: float) -> None:
        pause_s = self._costs.swap_s(replica.type_name)
        if self._generation.replicas.get(replica.gang_id) is replica:
            replica.pause(pause_s)
        self._clock.after(pause_s, partial(self._taken, replica, version, offered_s, pause_s))

    def _taken(self, replica: Replica, version: int, offered_s: float, pause_s: float) -> None:
        self._taking.discard(replica)
        if self._generation.replicas.get(replica.gang_id) is not replica:
            return  # it has left meanwhile
        now_s = self._clock.now_s
        self._journal.note(
            SyncDone(end_s=now_s, gang_id=replica.gang_id, duration_s=now_s - offered_s, pause_s=pause_s)
        )
        self._journal.spending.note_pause(replica, pause_s)
        self._generation.set_version(replica, version)
        self.bring_up(replica)
