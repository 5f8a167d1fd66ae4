"""All replicas and all requests that are under way.

::

    open(requests) ──► routing policy ──► a replica that is ready ──► news ──► whoever reads
                            ▲                     │ lost
                            └── with the tokens   ┘        every replica: wanted, run, lost, pause, run …
                                so far                     the watch: signs of life ──judge──► suspect, ready, lost
                                                           resize(number) ──resizing──► start, drain, idle

Everything runs in one event loop. A request is in ``_lives`` from :meth:`ReplicaPool.open` until its reader leaves, and
either a replica has it, or it waits in ``_unplaced`` for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from rlserve.engine.requests.request import Request
from rlserve.engine.stats.metrics import Value
from rlserve.errors import WorkerFailedError
from rlserve.serving.config import HealthConfig
from rlserve.serving.replicas.base import PoolCounts
from rlserve.serving.replicas.live_request import LiveRequest, RequestGroup
from rlserve.serving.replicas.messages import Abort, News, Order, Ready, Submit
from rlserve.serving.replicas.replica import Replica, ReplicaPlace
from rlserve.serving.replicas.resizing import resizing
from rlserve.serving.replicas.state import ReplicaState, judge, restart_pause_s
from rlserve.serving.routing.base import ReplicaLoad, RoutedRequest, RoutingPolicy

logger = logging.getLogger(__name__)

_WATCH_INTERVAL_S = 0.25
_REPORT_TIMEOUT_S = 0.5
"""For numbers of now; then those of the last beat will do."""


class ReplicaPool:
    """Starts replicas, gives them requests, and brings requests elsewhere when one is lost."""

    def __init__(
        self,
        places: Sequence[ReplicaPlace],
        policy: RoutingPolicy,
        config: HealthConfig,
        *,
        num_wanted: int | None = None,
        drain_timeout_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        make: Callable[[ReplicaPlace, Callable[[News], None], Callable[[], float]], Replica] = Replica,
    ) -> None:
        """
        Args:
            num_wanted: replicas at first; None: one at each place.
            drain_timeout_s: for the answers of a replica that is not wanted any more.
        """
        self.num_wanted = len(places) if num_wanted is None else num_wanted
        """Replicas that there are to be."""
        self.replicas = {place.name: make(place, partial(self._take_news, place.name), clock) for place in places}
        self.drained: set[str] = set()
        """Names of replicas that get nothing new, by the will of an operator."""
        self._policy = policy
        self._config = config
        self._clock = clock
        self._lives: dict[str, LiveRequest] = {}
        self._unplaced: dict[str, float] = {}
        """Requests without a replica, and until when they wait for one."""
        self._num_samples = dict.fromkeys(self.replicas, 0)
        """Under way, by replica."""
        self._drain_timeout_s = drain_timeout_s
        self._drain_ends_s: dict[str, float] = {}
        """Until when the answers of a replica that drains may take."""
        self._wanted = {name: asyncio.Event() for name in self.replicas}
        """Set while there is to be a process."""
        for name in list(self.replicas)[: self.num_wanted]:
            self._wanted[name].set()
        self._num_routed = self._num_failovers = self._num_lost = 0
        self._changed = asyncio.Event()
        """Set when a replica's state changes."""
        self._failure: BaseException | None = None

    @property
    def num_live_samples(self) -> int:
        """Samples that are generated or wait for it."""
        return sum(live.request.sampling.n for live in self._lives.values())

    @property
    def num_ready(self) -> int:
        """Replicas that take requests."""
        return sum(map(self._takes_requests, self.replicas.values()))

    @property
    def num_places(self) -> int:
        """Samples that replicas which are ready compute at once."""
        ready = filter(self._takes_requests, self.replicas.values())
        return sum(replica.ready.max_num_sequences for replica in ready if replica.ready is not None)

    @property
    def limits(self) -> Ready:
        """What the engines can take; they are all alike.

        Raises:
            WorkerFailedError: none was ever ready.
        """
        for replica in self.replicas.values():
            if replica.ready is not None:
                return replica.ready
        raise WorkerFailedError("no replica is ready yet")

    @property
    def engine_metrics(self) -> Mapping[str, Mapping[str, Value]]:
        """Of each replica, as of its last beat."""
        return {name: replica.metrics for name, replica in self.replicas.items() if replica.metrics}

    async def refresh(self) -> None:
        """Have :attr:`engine_metrics` be those of now, of all replicas that tell them within a moment."""
        ready = [replica for replica in self.replicas.values() if replica.state is ReplicaState.READY]
        reports = [replica.order(Order(action="report")) for replica in ready]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPORT_TIMEOUT_S):
                await asyncio.gather(*reports, return_exceptions=True)

    @property
    def counts(self) -> PoolCounts:
        """Totals."""
        return PoolCounts(num_failovers=self._num_failovers, num_lost=self._num_lost)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The replicas start with this context and end with it."""
        tasks = [asyncio.create_task(self._keep(replica)) for replica in self.replicas.values()]
        tasks.append(asyncio.create_task(self._watch()))
        try:
            yield
        finally:
            for replica in self.replicas.values():
                replica.move_to(ReplicaState.STOPPED)
                replica.kill()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def resize(self, num_wanted: int) -> None:
        """Have so many replicas from now on: start some, or drain some. Those that drain end their answers first; what
        has not ended in time goes on with another replica."""
        self.num_wanted = num_wanted
        self._adjust()

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds that the engine of each replica that is ready has computed in all."""
        ready = (replica for replica in self.replicas.values() if replica.state is ReplicaState.READY)
        return {replica.name: replica.busy_s for replica in ready}

    @property
    def is_paused(self) -> bool:
        """Whether engines stand still by the will of an operator."""
        return any(replica.start.is_paused for replica in self.replicas.values())

    @property
    def num_unplaced(self) -> int:
        """Requests that wait for a replica to be ready."""
        return len(self._unplaced)

    async def wait_ready(self) -> None:
        """Wait until a replica is ready.

        Raises:
            UserError: an engine cannot be had with this model and configuration.
            WorkerFailedError: all replicas were given up.
        """
        while self.num_ready == 0:
            await self._wait_change()

    async def wait_failed(self) -> None:
        """Wait until all replicas were given up, and raise why."""
        while True:
            await self._wait_change()

    @asynccontextmanager
    async def open(self, requests: Sequence[Request], affinity: str, *, streamed: bool) -> AsyncIterator[RequestGroup]:
        """Have requests answered while the context is open; what has not ended with it is aborted."""
        changed = asyncio.Event()
        lives = [LiveRequest(request, affinity, streamed=streamed, changed=changed) for request in requests]
        for live in lives:
            self._lives[live.request.id] = live
            self._place(live)
        try:
            yield RequestGroup(lives, changed)
        finally:
            for live in lives:
                self._forget(live)

    def num_samples_of(self, name: str) -> int:
        """Samples that a replica has."""
        return self._num_samples[name]

    # -- requests ----------------------------------------------------------------------------------------------

    def _place(self, live: LiveRequest) -> None:
        """Give a request to a replica, or let it wait for one."""
        loads = tuple(
            ReplicaLoad(name=name, num_samples=self._num_samples[name], tokens_per_s=replica.tokens_per_s)
            for name, replica in self.replicas.items()
            if self._takes_requests(replica)
        )
        if not loads:
            self._unplaced.setdefault(live.request.id, self._clock() + self._config.failover_timeout_s)
            return
        self._unplaced.pop(live.request.id, None)
        routed = RoutedRequest(number=self._num_routed, affinity=live.affinity)
        self._num_routed += 1
        name = self._policy.choose(routed, loads)
        live.replica = name
        self._num_samples[name] += live.request.sampling.n
        self.replicas[name].send(Submit(requests=(live.resumed(),), streamed=live.streamed))

    def _forget(self, live: LiveRequest) -> None:
        del self._lives[live.request.id]
        self._unplaced.pop(live.request.id, None)
        if live.replica is None:
            return
        self._num_samples[live.replica] -= live.request.sampling.n
        replica = self.replicas[live.replica]
        if not live.has_ended and replica.state in (ReplicaState.READY, ReplicaState.SUSPECT, ReplicaState.DRAINING):
            replica.send(Abort(request_ids=(live.request.id,)))

    def _take_news(self, name: str, news: News) -> None:
        for delta in news.deltas:
            live = self._lives.get(delta.request_id)
            if live is not None and live.replica == name:  # else its reader has left, or another replica has it
                live.take(delta)

    def _bring_elsewhere(self, name: str, *, is_lost: bool = True) -> None:
        """What a replica has goes on with another one. Only losses count: it may be what replicas die of."""
        for live in list(self._lives.values()):
            if live.replica == name and not live.has_ended:
                self._num_samples[name] -= live.request.sampling.n
                live.replica = None
                live.num_failovers += is_lost
                if live.num_failovers > self._config.max_failovers:
                    live.end(f"no replica outlived it: {live.num_failovers} were lost under it")
                else:
                    self._num_failovers += 1
                    self._place(live)

    def _place_unplaced(self) -> None:
        now = self._clock()
        for request_id, deadline in list(self._unplaced.items()):
            if self.num_ready:
                self._place(self._lives[request_id])
            elif now > deadline:
                del self._unplaced[request_id]
                self._lives[request_id].end("no replica is ready to answer it")

    def _takes_requests(self, replica: Replica) -> bool:
        return replica.state is ReplicaState.READY and replica.name not in self.drained

    # -- replicas ----------------------------------------------------------------------------------------------

    async def _keep(self, replica: Replica) -> None:
        """Run a replica, again and again, until it is given up."""
        try:
            while replica.num_failed_starts < self._config.max_failed_starts:
                await self._wait_wanted(replica)
                await asyncio.sleep(restart_pause_s(replica.num_failed_starts))
                if not self._wanted[replica.name].is_set():
                    continue
                replica.num_failed_starts += 1  # until it is ready
                replica.move_to(ReplicaState.STARTING)
                await replica.run()
                self._lose(replica, "its process has ended")
                await replica.reap()
            replica.move_to(ReplicaState.FAILED, f"{replica.num_failed_starts} starts failed in a row")
            self._adjust()  # another place may do
            if all(other.state is ReplicaState.FAILED for other in self.replicas.values()):
                raise WorkerFailedError("all replicas were given up: see the log for what they died of")
        except Exception as error:
            self._failure = error
        finally:
            self._changed.set()

    async def _watch(self) -> None:
        """Judge the replicas by their signs of life."""
        while True:
            for replica in self.replicas.values():
                if replica.state is ReplicaState.DRAINING:
                    self._end_drained(replica)
                state, reason = judge(replica.signs, self._clock(), self._config)
                if state is ReplicaState.LOST and replica.state is not ReplicaState.LOST:
                    replica.kill()  # which ends its run
                    self._lose(replica, reason)
                elif state is not replica.state:
                    replica.move_to(state, reason)
                    self._changed.set()
            self._place_unplaced()
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def _lose(self, replica: Replica, reason: str) -> None:
        if replica.state in (ReplicaState.LOST, ReplicaState.IDLE, ReplicaState.STOPPED):
            return
        replica.move_to(ReplicaState.LOST, reason)
        replica.metrics = {}
        self._num_lost += 1
        self._bring_elsewhere(replica.name)
        self._changed.set()

    def _adjust(self) -> None:
        """Start and drain replicas, so that as many are there as are wanted."""
        states = {
            name: ReplicaState.IDLE  # soon: its process is being waited for
            if replica.state is ReplicaState.LOST and not self._wanted[name].is_set()
            else replica.state
            for name, replica in self.replicas.items()
        }
        change = resizing(states, self._num_samples, self.num_wanted, self.drained)
        for name in change.kept:
            logger.info("replica %s is wanted again", name)
            self.replicas[name].move_to(ReplicaState.READY)
        for name in (*change.kept, *change.started):
            self._wanted[name].set()
        for name in change.ended:
            self._wanted[name].clear()
            replica = self.replicas[name]
            if replica.state is ReplicaState.STARTING:
                replica.num_failed_starts -= 1  # not for want of trying
                self._set_idle(replica)
            elif replica.state is not ReplicaState.LOST:  # which it stays until it is idle
                replica.move_to(ReplicaState.DRAINING, "it is not wanted any more")
                self._drain_ends_s[name] = self._clock() + self._drain_timeout_s
                self._end_drained(replica)
        self._changed.set()

    def _end_drained(self, replica: Replica) -> None:
        """End a replica that drains once its answers have ended, or their time is over and another can go on."""
        is_late = self._clock() >= self._drain_ends_s[replica.name] and self.num_ready > 0
        if is_late or not any(live.replica == replica.name and not live.has_ended for live in self._lives.values()):
            self._set_idle(replica)
            self._bring_elsewhere(replica.name, is_lost=False)

    def _set_idle(self, replica: Replica) -> None:
        replica.move_to(ReplicaState.IDLE)
        replica.metrics = {}
        replica.kill()  # which ends its run

    async def _wait_wanted(self, replica: Replica) -> None:
        wanted = self._wanted[replica.name]
        if not wanted.is_set():
            if replica.state is ReplicaState.LOST:
                replica.move_to(ReplicaState.IDLE)
            await wanted.wait()

    async def _wait_change(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._changed.clear()
        # Also by time: a replica gets ready without a word to us.
        try:
            await asyncio.wait_for(self._changed.wait(), _WATCH_INTERVAL_S)
        except TimeoutError:
            return
