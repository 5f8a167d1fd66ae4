"""Where requests of clients meet the run: in the controller's event loop, for a front in a thread of its own.

A request waits for room in the clients' share of any replica. It makes no progress while there is no replica at all,
as while all slots train, and after ``rollout.server.wait_timeout_s`` of that it ends with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count

from rlserve.controller.context import RunContext
from rlserve.controller.events import RequestsReturned, TokensStreamed, WorkerLost
from rlserve.controller.replicas import Replicas
from rlserve.controller.request_desk import RequestDesk
from rlserve.engine.requests.delta import RequestDelta
from rlserve.engine.requests.request import Request, SamplingParams
from rlserve.manager.roles import Role
from rlserve.pool.base import Profiled, RolloutStats
from rlserve.remote import answer
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.training import sampling_seed

_NUM_NUMBERS = 1 << 20
"""After so many requests, first-come order begins anew."""
_NUM_PRIORITIES = 1 << 10
"""That a client may give its requests, around 0."""
_TRACE_TIMEOUT_S = 110.0
"""Until a profile that has ended is written."""
Deliver = Callable[[RequestDelta], None]


@dataclass(frozen=True, kw_only=True)
class _Open:
    request: Request
    deliver: Deliver
    answering: asyncio.Task[None]


class ClientDesk:
    """Asks the request desk on behalf of clients, and passes on what is made of their requests."""

    def __init__(self, run: RunContext, desk: RequestDesk, replicas: Replicas, *, timeout_s: float) -> None:
        self._run = run
        self._desk = desk
        self._replicas = replicas
        self._timeout_s = timeout_s
        self._open: dict[RequestId, _Open] = {}
        self._is_closed = False
        self._numbers = count()
        self.num_returned = 0
        """Requests that went on elsewhere."""
        self.num_lost_replicas = 0
        run.events.subscribe(TokensStreamed, self._pass_on)
        run.events.subscribe(RequestsReturned, self._note_returned)
        run.events.subscribe(WorkerLost, self._note_lost)

    @property
    def replica_stats(self) -> Mapping[str, RolloutStats]:
        """The newest numbers of each replica that serves. May be read in another thread."""
        return self._replicas.stats

    async def profile(self, slot_id: str, path: str, *, max_steps: int, max_s: float) -> Profiled:
        """Have the next steps of a replica's engine profiled, and written to a file on its machine.

        Raises:
            WorkerFailedError: it serves no more, or was lost.
            UserError: the file cannot be written.
        """
        call = self._replicas.worker(slot_id).profile_rollout.remote(path, max_steps, max_s)
        what = f"the replica on {slot_id}, profiled"
        profiled: Profiled = await answer(call, timeout_s=max_s + _TRACE_TIMEOUT_S, what=what)
        return profiled

    async def end_profile(self, slot_id: str) -> None:
        """End the profile of now, if there is one."""
        call = self._replicas.worker(slot_id).end_profile.remote()
        await answer(call, timeout_s=_TRACE_TIMEOUT_S, what=f"the replica on {slot_id}, ending its profile")

    def begin(self, request: Request, deliver: Deliver) -> RequestId:
        """Have a request answered. ``deliver`` hears what is new of it, and its end. Nothing once the run is over."""
        number = next(self._numbers)
        spec = RequestSpec(
            id=RequestId(kind=RequestKind.CLIENT, name=str(number)),
            prompt_token_ids=request.prompt_token_ids,
            sampling=_seeded(request),
            position=_position(number, request.priority),
            timeout_s=self._timeout_s,
            cache_salt=request.cache_salt,
        )
        if not self._is_closed:
            answering = self._run.tasks.create_task(self._answer(spec, request, deliver))
            self._open[spec.id] = _Open(request=request, deliver=deliver, answering=answering)
        return spec.id

    def end(self, request_id: RequestId) -> None:
        """Nobody waits for a request any more; nothing if it has ended."""
        if (opened := self._open.pop(request_id, None)) is not None:
            opened.answering.cancel()

    def close(self) -> None:
        """End all; take nothing more."""
        self._is_closed = True
        for request_id in list(self._open):
            self.end(request_id)

    async def _answer(self, spec: RequestSpec, request: Request, deliver: Deliver) -> None:
        output = await self._desk.answer(spec)
        self._open.pop(spec.id, None)
        deliver(RequestDelta(request_id=request.id, samples=(), output=output))

    def _pass_on(self, event: TokensStreamed) -> None:
        opened = self._open.get(event.id.first)
        if opened is not None:
            opened.deliver(RequestDelta(request_id=opened.request.id, samples=event.samples))

    def _note_returned(self, event: RequestsReturned) -> None:
        self.num_returned += sum(request_id.kind is RequestKind.CLIENT for request_id in event.ids)

    def _note_lost(self, event: WorkerLost) -> None:
        self.num_lost_replicas += event.role is Role.ROLLOUT


def _seeded(request: Request) -> SamplingParams:
    """With a seed that another attempt at the request has too."""
    sampling = request.sampling
    return sampling if sampling.seed is not None else replace(sampling, seed=sampling_seed(0, request.id))


def _position(number: int, priority: int) -> int:
    """Lower goes first: by the client's priority, then as they came. From 0 to 2**30."""
    bounded = min(max(priority, -_NUM_PRIORITIES // 2), _NUM_PRIORITIES // 2 - 1) + _NUM_PRIORITIES // 2
    return bounded * _NUM_NUMBERS + number % _NUM_NUMBERS
