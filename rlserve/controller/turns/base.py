"""The contract: whoever needs trainers or replicas says so, and goes on when they are there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping


class Turns(ABC):
    """Sees to it that a role can be used. Called by one task, between two steps."""

    @abstractmethod
    async def begin_training(self) -> None:
        """Return when the trainers can step, save, or say what their weights are.

        Raises:
            WorkerFailedError: no trainer is left that holds the state of the run.
        """

    @abstractmethod
    async def begin_rollout(self) -> None:
        """Return when replicas serve that can be given requests for the newest version of the weights.

        Raises:
            WorkerFailedError: as ``begin_training``.
        """

    @abstractmethod
    def is_ripe(self, num_steps_left: int) -> bool:
        """Whether training may take a batch. Asked whenever something has changed."""

    @abstractmethod
    def metrics(self) -> Mapping[str, float]:
        """Of the last turns; names are documented in ``rlserve.tracking.names``."""
