"""Both roles at once, each on gangs of its own: nobody has to wait for the other's end."""

from __future__ import annotations

from collections.abc import Mapping

from rlserve.controller.turns.base import Turns


class AtOnce(Turns):
    """Of the placements ``elastic`` and ``separate``."""

    async def begin_training(self) -> None:
        pass

    async def begin_rollout(self) -> None:
        pass

    def is_ripe(self, num_steps_left: int) -> bool:
        return True

    def metrics(self) -> Mapping[str, float]:
        return {}
