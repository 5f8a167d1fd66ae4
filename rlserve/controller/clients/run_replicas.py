"""The replicas of a run, as the front needs them (``rlserve/serving/replicas/base.py``).

Lives in the front's event loop. What it wants of the run is called in the controller's loop, and what comes of it is
called here: nobody waits for the other, and nothing is shared but numbers that are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from rlserve.controller.clients.desk import ClientDesk
from rlserve.engine.requests.delta import RequestDelta
from rlserve.engine.requests.request import Request
from rlserve.engine.stats.metrics import Value
from rlserve.rollout.requests.base import RequestId
from rlserve.serving.replicas.base import PoolCounts
from rlserve.serving.replicas.live_request import LiveRequest, RequestGroup
from rlserve.serving.replicas.messages import Ready


class RunReplicas:
    """
    Args:
        controller: the loop of the controller.
        num_places: samples of clients that one replica may hold.
    """

    def __init__(
        self, desk: ClientDesk, controller: asyncio.AbstractEventLoop, *, limits: Ready, num_places: int
    ) -> None:
        self.limits = limits
        self._desk = desk
        self._controller = controller
        self._num_places = num_places
        self._lives: set[LiveRequest] = set()

    @property
    def num_live_samples(self) -> int:
        """Samples of clients that are generated or wait for it."""
        return sum(live.request.sampling.n for live in self._lives)

    @property
    def num_ready(self) -> int:
        """Replicas that serve now."""
        return len(self._desk.replica_stats)

    @property
    def num_places(self) -> int:
        """As if there were one replica at least: while all slots train, requests wait."""
        return max(self.num_ready, 1) * self._num_places

    @property
    def engine_metrics(self) -> Mapping[str, Mapping[str, Value]]:
        """Of each replica, training's requests and all others together."""
        return {slot_id: stats.engine_metrics for slot_id, stats in self._desk.replica_stats.items()}

    async def refresh(self) -> None:
        """Nothing: the controller hears of its replicas as often as they say."""

    @property
    def counts(self) -> PoolCounts:
        """Totals."""
        return PoolCounts(num_failovers=self._desk.num_returned, num_lost=self._desk.num_lost_replicas)

    @asynccontextmanager
    async def open(self, requests: Sequence[Request], affinity: str, *, streamed: bool) -> AsyncIterator[RequestGroup]:
        """Have requests answered while the context is open; what has not ended with it is aborted. Which replica
        answers, the run's router says, which knows who has a prompt in its cache."""
        changed = asyncio.Event()
        lives = [LiveRequest(request, affinity, streamed=streamed, changed=changed) for request in requests]
        self._lives.update(lives)
        ids: list[RequestId] = []
        _post(self._controller, self._begin, asyncio.get_running_loop(), ids, lives)
        try:
            yield RequestGroup(lives, changed)
        finally:
            self._lives.difference_update(lives)
            if not all(live.has_ended for live in lives):
                _post(self._controller, self._end, ids)

    def break_off(self, reason: str) -> None:
        """End all with an error: the run is over."""
        for live in self._lives:
            if not live.has_ended:
                live.end(reason)

    # -- in the controller's loop ----------------------------------------------------------------------------

    def _begin(self, front: asyncio.AbstractEventLoop, ids: list[RequestId], lives: Sequence[LiveRequest]) -> None:
        for live in lives:
            ids.append(self._desk.begin(live.request, partial(_deliver, front, live)))

    def _end(self, ids: Sequence[RequestId]) -> None:
        for request_id in ids:
            self._desk.end(request_id)


def _deliver(front: asyncio.AbstractEventLoop, live: LiveRequest, delta: RequestDelta) -> None:
    """In the controller's loop. Who wants the whole answer hears of its end alone: the controller keeps the tokens."""
    if live.streamed:
        _post(front, _take, live, delta)
    elif delta.output is not None:
        _post(front, _take, live, replace(delta, samples=()))


def _take(live: LiveRequest, delta: RequestDelta) -> None:
    if not live.has_ended:
        live.take(delta)


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """Have a function called in another thread's loop."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # it has ended just now, and whatever it had was broken off
        assert loop.is_closed()
