"""The contract of a launcher: where Ray comes from, and which slots it offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from rlserve.pool.config import PoolConfig, SlotGroupConfig


class Launcher(ABC):
    """Connects this process to Ray, and lets go of it."""

    def begin(self, config: PoolConfig) -> None:  # noqa: B027
        """Begin what :meth:`connect` will need, beside whatever else goes on; may be left out.

        Raises:
            PoolError: as for ``connect``.
        """

    @abstractmethod
    def connect(self, config: PoolConfig) -> tuple[SlotGroupConfig, ...]:
        """Make sure that Ray runs, and return the slot groups of the run: as configured, or what there is.

        Raises:
            PoolError: there is no cluster, or it lacks slots that are asked for.
        """

    @abstractmethod
    def close(self) -> None:
        """End Ray if this process started it, else leave the cluster as it is."""
