"""The replicas, each by the slot of its leading worker: what they are sent and return, which weights they serve.

::

    router ──assign──► submit ──► replica ──collect (long poll, one task a replica)──► RequestAnswered
                                     ▲
    weight sync ─────────────────────┘   each replica at its own pace; the router learns the version after it

Requests of clients are followed by streams of their own beside it (``clients/streams.py``).

A replica that dies, is ended by the heartbeat, or makes no progress on its work for the deadline, is lost: its
requests wait again in the router, nothing it might still say is listened to, and ``WorkerLost`` is emitted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlserve.controller.clients.streams import ClientStreams, is_of_client
from rlserve.controller.context import RunContext
from rlserve.controller.events import (
    ReplicaHeard,
    RequestAnswered,
    RequestsReturned,
    RequestsStarted,
    WeightsNotTaken,
    WeightsTaken,
    WorkerLost,
)
from rlserve.controller.ports import Fleet, WorkerHandle
from rlserve.controller.weight_source import WeightSource
from rlserve.engine.requests.request import RequestOutput
from rlserve.errors import (
    WorkerFailedError,
    WorkerLostError,
)
from rlserve.manager.roles import Role
from rlserve.pool.base import Collected, MemoryChange, RolloutStats
from rlserve.remote import answer
from rlserve.rollout.requests.base import RequestId
from rlserve.rollout.requests.router import Router
from rlserve.tracking.events import LostWorkEvent, RolePhase, RolePhaseEvent

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Longest that a long poll waits inside the worker."""


@dataclass(kw_only=True)
class _Replica:
    worker: Any
    collecting: asyncio.Task[None] | None = None
    sending: set[asyncio.Task[None]] = field(default_factory=set)
    """Calls that are not answered yet."""
    streams: ClientStreams
    leaving: bool = False
    stats: RolloutStats | None = None
    since_s: float
    """When it began to serve, on the run's clock."""
    last_progress_s: float
    """Seconds of this machine."""
    num_engine_steps: int = -1
    num_tokens_before: int = 0
    """Tokens that this worker's engine had generated when it joined."""
    num_kept: dict[str, int] = field(default_factory=dict)
    """Tokens that came with each request that it has: others made them."""
    num_answered_tokens: int = 0
    """Those that it made itself, in answers."""

    @property
    def num_own_tokens(self) -> int:
        """Tokens that it was last heard to have made, but for clients: of those there may be newer news."""
        if self.stats is None:
            return 0
        return max(self.stats.num_generated_tokens - self.num_tokens_before - self.streams.num_tokens, 0)


class Replicas:
    """Joins, feeds and dismisses replicas."""

    def __init__(
        self,
        run: RunContext,
        *,
        fleet: Fleet,
        router: Router,
        weights: WeightSource,
        capacity: int,
        switch_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        """``capacity`` is how many samples a replica may hold."""
        self._run = run
        self._fleet = fleet
        self._router = router
        self._weights = weights
        self._capacity = capacity
        self._switch_timeout_s = switch_timeout_s
        self._request_timeout_s = request_timeout_s
        self._replicas: dict[str, _Replica] = {}
        self._num_tokens = self._retired_tokens = 0
        self._retired_busy_s = 0.0
        run.events.subscribe(WeightsTaken, self._note_version)
        run.events.subscribe(WeightsNotTaken, self._lose_without_weights)

    @property
    def slot_ids(self) -> tuple[str, ...]:
        """Slots that serve."""
        return tuple(self._replicas)

    @property
    def stats(self) -> dict[str, RolloutStats]:
        """The newest numbers of each replica that has answered a poll. May be read in another thread."""
        replicas = list(self._replicas.items())  # at once, whatever joins or leaves meanwhile
        return {slot_id: replica.stats for slot_id, replica in replicas if replica.stats is not None}

    @property
    def num_generated_tokens(self) -> int:
        """Tokens generated since the run began, by all replicas that ever were, but for clients."""
        return self._num_tokens

    @property
    def busy_s(self) -> float:
        """Seconds that engines have computed since the run began, all replicas that ever were together."""
        return self._retired_busy_s + sum(stats.busy_s for stats in self.stats.values())

    def worker(self, slot_id: str) -> Any:
        """The process of a replica that serves.

        Raises:
            WorkerLostError: it serves no more.
        """
        if slot_id not in self._replicas:
            raise WorkerLostError(f"there is no replica on {slot_id} any more")
        return self._replicas[slot_id].worker

    async def join(self, slot_id: str) -> None:
        """Bring a replica whose engine has just been formed to the newest weights, and only then let it serve.

        Raises:
            WorkerFailedError: it was lost, or failed, on the way. If it served already, that was reported.
        """
        worker = self._fleet[slot_id]
        self._note_phase(slot_id, "engine_formed")
        receipt = await self._weights.take(slot_id)
        self._note_phase(slot_id, "weights_taken")
        first = await self._within(worker.collect.remote(0.0), f"{slot_id} answering its first poll")
        now = self._run.clock.real_s()
        replica = _Replica(
            worker=worker,
            streams=self._client_streams(slot_id, worker),
            since_s=self._run.clock.now(),
            last_progress_s=now,
            num_tokens_before=first.stats.num_generated_tokens,
        )
        self._replicas[slot_id] = replica
        self._router.join(slot_id, version=receipt.version, capacity=self._capacity, time_s=now)
        replica.collecting = self._run.tasks.create_task(self._collect(slot_id))
        self.dispatch()
        await self._weights.add(slot_id, receipt)
        if self._replicas.get(slot_id) is not replica:
            raise WorkerLostError(f"the replica on {slot_id} was lost as soon as it served")

    async def leave(self, slot_id: str) -> MemoryChange:
        """Take a worker out of the rollout role: no new work, unfinished requests move on with their tokens, and only
        then its memory is freed, of which nobody who generates has to know.

        Returns what was freed.

        Raises:
            WorkerFailedError: it was lost, or failed, on the way.
        """
        replica = self._replicas[slot_id]
        worker = replica.worker
        self._router.close(slot_id)
        replica.leaving = True
        self._weights.remove(slot_id)
        await asyncio.gather(*replica.sending, return_exceptions=True)
        partials = await self._within(worker.stop_rollout.remote(), f"{slot_id} giving the rollout role up")
        if replica.collecting is not None:
            await asyncio.wait([replica.collecting], timeout=self._switch_timeout_s)
        await replica.streams.ended(self._switch_timeout_s)
        if self._replicas.get(slot_id) is not replica:
            raise WorkerLostError(f"the replica on {slot_id} was lost while it left")
        self._forget(slot_id, partials)
        self._note_phase(slot_id, "requests_moved")
        freed: MemoryChange = await self._within(worker.rollout_ended.remote(), f"{slot_id} ending its rollout")
        self._note_phase(slot_id, "memory_released")
        return freed

    def lose(self, slot_id: str, error: BaseException) -> None:
        """A worker that serves, or one of its gang, was found dead; do nothing where that is known."""
        replica = self._replicas.get(slot_id)
        if replica is not None:
            self._lose(slot_id, replica, error)

    def spare(self, slot_id: str, is_spared: bool) -> None:
        """Send nothing new to a replica until it is no longer spared; do nothing where it does not serve."""
        if slot_id in self._replicas:
            self._router.spare(slot_id, is_spared)
            self.dispatch()

    def forget(self, slot_id: str) -> None:
        """A worker was ended in mid-move: what it held, if it served, waits again."""
        replica = self._replicas.get(slot_id)
        if replica is not None:
            if replica.collecting is not None:
                replica.collecting.cancel()
            self._forget(slot_id, None)

    def dispatch(self) -> None:
        """Send waiting requests to replicas with room, one message a replica."""
        for slot_id, requests in self._router.assign(time_s=self._run.clock.real_s()).items():
            ids = tuple(RequestId.parse(request.id) for request in requests)
            self._run.events.emit(RequestsStarted(ids=ids, version=self._router.version(slot_id)))
            replica = self._replicas[slot_id]
            of_clients = [request for request in requests if is_of_client(request)]
            if others := [request for request in requests if not is_of_client(request)]:
                replica.num_kept |= {
                    request.id: sum(len(sample.tokens) for sample in request.resumed) for request in others
                }
                self._send(slot_id, replica, replica.worker.submit.remote(others), "taking requests")
            if of_clients:
                self._send(slot_id, replica, replica.worker.submit_streamed.remote(of_clients), "taking requests")
                replica.streams.follow(of_clients)

    def withdraw(self, request_ids: Iterable[RequestId]) -> None:
        """Nobody waits for these any more: replicas that have them stop computing them. Others pass unnoticed."""
        held: dict[str, list[str]] = {}
        for request_id in request_ids:
            if (found := self._router.withdraw(request_id)) is not None:
                replica_id, attempt_id = found
                held.setdefault(replica_id, []).append(str(attempt_id))
        for slot_id, ids in held.items():
            replica = self._replicas[slot_id]
            replica.streams.drop(ids)
            if not replica.leaving:
                self._send(slot_id, replica, replica.worker.abort.remote(ids), "ending requests")
        self.dispatch()

    async def close(self) -> None:
        """Stop listening to all replicas."""
        tasks = [replica.collecting for replica in self._replicas.values() if replica.collecting is not None]
        tasks += [replica.streams.polling for replica in self._replicas.values() if replica.streams.polling is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _client_streams(self, slot_id: str, worker: WorkerHandle) -> ClientStreams:
        return ClientStreams(
            self._run,
            worker,
            slot_id,
            timeout_s=self._switch_timeout_s,
            on_end=partial(self._end, slot_id),
            on_failure=partial(self.lose, slot_id),
        )

    # -- inside ----------------------------------------------------------------------------------------------

    async def _collect(self, slot_id: str) -> None:
        replica = self._replicas[slot_id]
        try:
            while True:
                collected: Collected = await answer(
                    replica.worker.collect.remote(POLL_S),
                    timeout_s=POLL_S + self._switch_timeout_s,
                    what=f"the replica on {slot_id}",
                )
                self._note_progress(slot_id, replica, collected.stats)
                for output in collected.outputs:
                    self._take_answer(slot_id, replica, output)
                if collected.closed:
                    return
                if collected.outputs:
                    self.dispatch()
        except WorkerFailedError as error:
            self._lose(slot_id, replica, error)

    def _note_progress(self, slot_id: str, replica: _Replica, stats: RolloutStats) -> None:
        now = self._run.clock.real_s()
        has_work = stats.num_running + stats.num_waiting > 0
        if stats.num_steps != replica.num_engine_steps or not has_work:
            if stats.num_steps != replica.num_engine_steps:
                self._router.note_step(slot_id, time_s=now)
            replica.last_progress_s, replica.num_engine_steps = now, stats.num_steps
        elif now - replica.last_progress_s > self._request_timeout_s:
            raise WorkerLostError(
                f"the replica on {slot_id} has work but made no step for "
                f"rollout.request_timeout_s={self._request_timeout_s:g} s"
            )
        if replica.stats is None or replica.stats.first_token_ago_s is None:
            self._note_first_token(slot_id, stats)
        replica.stats = stats
        self._count_tokens()
        self._run.events.emit(
            ReplicaHeard(
                slot_id=slot_id,
                since_s=replica.since_s,
                stats=stats,
                num_generated_tokens=stats.num_generated_tokens - replica.num_tokens_before,
            )
        )

    def _count_tokens(self) -> None:
        """A total never goes back, although clients' tokens are heard of before the numbers that have them."""
        now = sum(replica.num_own_tokens for replica in self._replicas.values())
        self._num_tokens = max(self._num_tokens, self._retired_tokens + now)

    def _note_first_token(self, slot_id: str, stats: RolloutStats) -> None:
        if stats.first_token_ago_s is not None:
            self._note_phase(slot_id, "first_token", ago_s=stats.first_token_ago_s)

    def _take_answer(self, slot_id: str, replica: _Replica, output: RequestOutput) -> None:
        """Answers that come too late are passed over."""
        num_tokens = sum(len(sample.tokens) for sample in output.samples)
        replica.num_answered_tokens += num_tokens - replica.num_kept.pop(output.request_id, 0)
        self._end(slot_id, output)

    def _end(self, slot_id: str, output: RequestOutput) -> None:
        request_id = self._router.finished(slot_id, output)
        if request_id is not None:
            self._run.events.emit(RequestAnswered(id=request_id, output=output))

    def _send(self, slot_id: str, replica: _Replica, call: Any, doing: str) -> None:
        """See to it in the background that a call is answered; a replica that does not is lost."""
        work = self._answered(slot_id, replica, call, doing)
        try:
            task = self._run.tasks.create_task(work)
        except RuntimeError:  # the run ends with an error, and its workers with it
            work.close()
            return
        replica.sending.add(task)
        task.add_done_callback(replica.sending.discard)

    async def _answered(self, slot_id: str, replica: _Replica, call: Any, doing: str) -> None:
        try:
            await self._within(call, f"{slot_id} {doing}")
        except WorkerFailedError as error:
            self._lose(slot_id, replica, error)

    def _note_version(self, event: WeightsTaken) -> None:
        self._router.set_version(event.slot_id, event.version)
        self.dispatch()

    def _lose_without_weights(self, event: WeightsNotTaken) -> None:
        self._lose(event.slot_id, self._replicas[event.slot_id], event.error)

    def _lose(self, slot_id: str, replica: _Replica, error: BaseException) -> None:
        if self._replicas.get(slot_id) is not replica:
            return
        logger.warning("replica on %s is lost: %s", slot_id, error)
        collecting = replica.collecting
        self._forget(slot_id, None)
        if collecting is not None and collecting is not asyncio.current_task():
            collecting.cancel()
        self._run.events.emit(WorkerLost(slot_id=slot_id, role=Role.ROLLOUT, error=error))

    def _forget(self, slot_id: str, partials: Sequence[RequestOutput] | None) -> None:
        replica = self._replicas.pop(slot_id)
        replica.streams.close()
        self._weights.remove(slot_id)
        if replica.stats is not None:
            self._retired_busy_s += replica.stats.busy_s
            self._retired_tokens += replica.num_own_tokens
        kept = replica.streams.kept() if partials is None else partials
        returned = self._router.replica_left(slot_id, kept, time_s=self._run.clock.real_s())
        if partials is None and returned:
            num_tokens = max(replica.num_own_tokens - replica.num_answered_tokens, 0)
            self._run.events.emit(
                LostWorkEvent(
                    time_s=self._run.clock.now(), slot_id=slot_id, num_requests=len(returned), num_tokens=num_tokens
                )
            )
        self._run.events.emit(RequestsReturned(ids=tuple(returned)))
        self.dispatch()

    def _note_phase(self, slot_id: str, phase: RolePhase, *, ago_s: float = 0.0) -> None:
        time_s = self._run.clock.now() - ago_s
        self._run.events.emit(RolePhaseEvent(time_s=time_s, slot_id=slot_id, phase=phase))

    async def _within(self, call: Any, what: str) -> Any:
        return await answer(call, timeout_s=self._switch_timeout_s, what=what)
