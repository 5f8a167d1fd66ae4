"""What the front needs of whoever answers: processes of its own (``pool.py``), or the replicas of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from rlserve.engine.requests.request import Request
from rlserve.engine.stats.metrics import Value
from rlserve.serving.replicas.live_request import RequestGroup
from rlserve.serving.replicas.messages import Ready


@dataclass(frozen=True, kw_only=True)
class PoolCounts:
    """Totals since the server began."""

    num_failovers: int
    """Requests that went on with another replica because theirs was lost, or left."""
    num_lost: int
    """Replicas that were lost."""


class Replicas(Protocol):
    """Replicas with the same model. All is called in the front's event loop."""

    @property
    def num_live_samples(self) -> int:
        """Samples that are generated or wait for it."""

    @property
    def num_ready(self) -> int:
        """Replicas that take requests."""

    @property
    def num_places(self) -> int:
        """Samples that are computed at once for clients; 0 where there is nobody to wait for."""

    @property
    def limits(self) -> Ready:
        """What the engines can take; they are all alike.

        Raises:
            WorkerFailedError: that is not known yet.
        """

    @property
    def engine_metrics(self) -> Mapping[str, Mapping[str, Value]]:
        """Of each replica, as it was heard last."""

    async def refresh(self) -> None:
        """Have :attr:`engine_metrics` be those of now, of all that can tell them at once."""

    @property
    def counts(self) -> PoolCounts:
        """Totals."""

    def open(
        self, requests: Sequence[Request], affinity: str, *, streamed: bool
    ) -> AbstractAsyncContextManager[RequestGroup]:
        """Have requests answered while the context is open; what has not ended with it is aborted.

        Args:
            affinity: requests with the same are best answered by the same replica.
            streamed: whether the group gives news, or whole answers alone.
        """
