"""Gangs whose node has said that it will leave, as in a run (``rlserve.controller.departures``).

::

    leaving: emptied as in a move, lost where that takes longer than its grace ──► gone

The last trainer, the last replica and a gang that is being moved are spared until others have come: a run would end.
"""

from __future__ import annotations

from collections.abc import Callable

from rlserve.manager.gang_table import GangState
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.reallocation import Reallocation

_LOOK_S = 1.0


class Departures:
    """Empties gangs, and lets them go."""

    def __init__(self, clock: Clock, reallocation: Reallocation, *, grace_s: float) -> None:
        """``grace_s``: from the notice until the node is away."""
        self.num_notices = 0
        self.num_late = 0
        """Gangs that were not empty in time."""
        self._clock = clock
        self._reallocation = reallocation
        self._grace_s = grace_s

    def leave(self, gang_id: str, on_gone: Callable[[str], None]) -> None:
        """A gang has its notice; ``on_gone`` is told when its node has left."""
        self.num_notices += 1
        self._reallocation.leaving.add(gang_id)
        self._clock.start(self._empty(gang_id, on_gone))
        self._clock.start(self._expire(gang_id, on_gone))

    def _empty(self, gang_id: str, on_gone: Callable[[str], None]) -> Process:
        reallocation = self._reallocation
        while gang_id in reallocation.leaving:
            yield from reallocation.take_turn()
            if reallocation.may_leave(gang_id):
                yield from reallocation.give_up(gang_id, "its node leaves")
                if reallocation.table.state(gang_id) is GangState.IDLE:
                    self._be_gone(gang_id, on_gone)
            reallocation.end_turn()
            yield _LOOK_S

    def _expire(self, gang_id: str, on_gone: Callable[[str], None]) -> Process:
        yield self._grace_s
        reallocation = self._reallocation
        while gang_id in reallocation.leaving:
            if reallocation.may_leave(gang_id):
                self.num_late += 1
                reallocation.lose(gang_id, "was not empty in time")
                self._be_gone(gang_id, on_gone)
                return
            yield _LOOK_S

    def _be_gone(self, gang_id: str, on_gone: Callable[[str], None]) -> None:
        self._reallocation.enter(gang_id, GangState.GONE, "its node has left")
        self._reallocation.leaving.discard(gang_id)
        on_gone(gang_id)
