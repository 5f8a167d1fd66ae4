"""The new tokens of clients' requests that one replica has: asked for as long as it has any.

::

    follow(requests) ──► stream (long poll) ──► TokensStreamed … the end, as of any other request
                           ▲           │
                           └── pause ──┘   so that a poll costs what it costs so many times a second at most

What was made is kept here until the request ends: where the replica is lost, another one goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from rlserve.controller.context import RunContext
from rlserve.controller.events import TokensStreamed
from rlserve.engine.requests.delta import RequestDelta, rest_of
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput
from rlserve.errors import WorkerFailedError
from rlserve.pool.base import Streamed
from rlserve.remote import answer
from rlserve.rollout.requests.base import RequestId, RequestKind
from rlserve.serving.replicas.live_request import LiveSample

_POLL_S = 1.0
"""Longest that a long poll waits inside the worker."""
_PAUSE_S = 0.02
"""Between two polls."""


def is_of_client(request: Request) -> bool:
    """Whether a request is followed token by token."""
    return RequestId.parse(request.id).kind is RequestKind.CLIENT


class ClientStreams:
    """Of one replica.

    Args:
        timeout_s: within which the worker answers beyond what it waits for.
        on_end: hears the answers.
        on_failure: hears that the replica is lost.
    """

    def __init__(
        self,
        run: RunContext,
        worker: Any,
        slot_id: str,
        *,
        timeout_s: float,
        on_end: Callable[[RequestOutput], None],
        on_failure: Callable[[WorkerFailedError], None],
    ) -> None:
        self._run = run
        self._worker = worker
        self._slot_id = slot_id
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._on_failure = on_failure
        self._samples: dict[str, dict[int, LiveSample]] = {}
        """By request and index."""
        self.num_tokens = 0
        """That the replica made for clients."""
        self.polling: asyncio.Task[None] | None = None

    def follow(self, requests: Sequence[Request]) -> None:
        """The replica has been given requests."""
        for request in requests:
            self._samples[request.id] = _samples_of(request)
        if self.polling is None or self.polling.done():
            self.polling = self._run.tasks.create_task(self._poll())

    def drop(self, request_ids: Iterable[str]) -> None:
        """Nobody waits for these any more."""
        for request_id in request_ids:
            self._samples.pop(request_id, None)

    def kept(self) -> list[RequestOutput]:
        """What there is of the requests that have not ended, to be gone on with."""
        return [
            RequestOutput(
                request_id=request_id,
                samples=tuple(sample.output() for sample in samples.values() if sample.has_begun),
            )
            for request_id, samples in self._samples.items()
        ]

    async def ended(self, timeout_s: float) -> None:
        """Wait until all that a replica made that generates no more was heard."""
        if self.polling is not None:
            await asyncio.wait([self.polling], timeout=timeout_s)

    def close(self) -> None:
        """Listen no more."""
        if self.polling is not None and self.polling is not asyncio.current_task():
            self.polling.cancel()

    async def _poll(self) -> None:
        try:
            while self._samples:
                streamed: Streamed = await answer(
                    self._worker.stream.remote(_POLL_S),
                    timeout_s=_POLL_S + self._timeout_s,
                    what=f"the replica on {self._slot_id}, streaming",
                )
                for delta in streamed.deltas:
                    self._take(delta)
                if streamed.closed:
                    return
                await asyncio.sleep(_PAUSE_S)
        except WorkerFailedError as error:
            self._on_failure(error)

    def _take(self, delta: RequestDelta) -> None:
        samples = self._samples.get(delta.request_id)
        if samples is None:  # nobody waits for it any more
            return
        for sample in delta.samples:
            samples[sample.index].append(sample)
        if delta.samples:
            streamed = TokensStreamed(id=RequestId.parse(delta.request_id), samples=delta.samples)
            self.num_tokens += streamed.num_tokens
            self._run.events.emit(streamed)
        if delta.output is not None:
            del self._samples[delta.request_id]
            self._on_end(delta.output)


def _samples_of(request: Request) -> dict[int, LiveSample]:
    samples = {index: LiveSample(index) for index in range(request.sampling.n)}
    for resumed in request.resumed:
        sample = rest_of(resumed, 0)
        goes_on = sample.finish_reason is FinishReason.ABORT
        samples[resumed.index].append(replace(sample, finish_reason=None) if goes_on else sample)
    return samples
