"""The trainers' group of a run that is judged by its data, and not by what replicas generate."""

from __future__ import annotations

from collections.abc import Mapping

from rlserve.controller.trainer_calls import failures_of
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.trainers.batch import Batch


class SupervisedTrainers(TrainerGroup):
    """Can be asked for the loss on held-out rows."""

    async def evaluate(self, batch: Batch) -> Mapping[str, float]:
        """How well the members' model does on a batch, between two steps; where one is lost, the others do it anew.

        Raises:
            WorkerFailedError: no member is left.
        """
        async with self._boundary.training():
            shared = self._fleet.share(batch)
            while True:
                answers = await self._calls.all(self._members, "evaluate", shared, timeout_s=self._step_timeout_s)
                failures = failures_of(answers)
                if not failures:
                    found: Mapping[str, float] = answers[self._members[0]]
                    return found
                await self._regroup_survivors(failures)
