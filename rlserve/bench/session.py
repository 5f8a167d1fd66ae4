"""One run: warm-up, then the load until it is over, with a meter beside it of how late the event loop is.

::

    warm up, one after the other ──► start ──► load.run ── hold ──► turn ─► client.ask ─► answer ─► next turn
                                        │                                                    │
                                        └── lag meter, until the end                     records
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import aiohttp

from rlserve.bench.client.client import Client, ServerAddress, Silence, Watcher, open_session
from rlserve.bench.client.request import History, RequestSettings, request_body
from rlserve.bench.load.base import Hold, Load
from rlserve.bench.results.client_limit import ClientLoad
from rlserve.bench.results.record import RequestRecord
from rlserve.bench.results.statistics import distribution
from rlserve.bench.results.summary import Measurement
from rlserve.bench.workloads.base import Conversation, Workload
from rlserve.errors import UserError

_LAG_INTERVAL_S = 0.01
_TIMER_RESOLUTION_S = 0.001
"""epoll rounds its timeouts up to that; a socket that becomes ready does not wait for it."""
_WARM_UP_INDEX = 1 << 40
"""Conversations of the warm-up are others than those that are measured."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """All that a run needs to know."""

    address: ServerAddress
    settings: RequestSettings
    workload: Workload
    load: Load
    num_conversations: int | None
    """None: as many as there is time for."""
    duration_s: float | None
    """No conversation begins later; those under way are waited for."""
    num_warm_up: int
    count_tokens: Callable[[str], int] | None = None

    def check(self) -> None:
        """Raise UserError where the endpoint cannot take what the workload asks."""
        endpoint = self.settings.endpoint
        for index in range(self.workload.num_conversations or 1):
            history = History()
            for position, turn in enumerate(self.workload.conversation(index).turns):
                history = history.answered("", endpoint) if position else history
                history = history.asked(turn, endpoint)

    def conversations(self) -> Iterator[Conversation]:
        """In order. They are made before the run where their number is known, since that takes the client's time."""
        if self.num_conversations is None:
            return (self.workload.conversation(index) for index in count())
        return iter([self.workload.conversation(index) for index in range(self.num_conversations)])


class _Recorder(Watcher):
    """Keeps all records, and passes on what it is told."""

    def __init__(self, watcher: Watcher) -> None:
        self.records: list[RequestRecord] = []
        self._watcher = watcher

    def sent(self) -> None:
        self._watcher.sent()

    def received(self) -> None:
        self._watcher.received()

    def ended(self, record: RequestRecord) -> None:
        self.records.append(record)
        self._watcher.ended(record)


async def run_session(session: Session, watcher: Watcher) -> Measurement:
    """Put the server under load. SIGINT ends it, and what was under way then counts as failed.

    Raises:
        UserError: a request of the warm-up failed, or the endpoint cannot take the workload.
    """
    session.check()
    loop, recorder = asyncio.get_running_loop(), _Recorder(watcher)
    async with open_session(session.address) as connections:
        await _warm_up(session, connections)
        conversations = session.conversations()
        start_s, cpu_start_s = loop.time(), time.process_time()
        client = _client(session, connections, lambda: loop.time() - start_s, recorder)
        end_s = float("inf") if session.duration_s is None else start_s + session.duration_s
        async with _lag_meter() as lags_s:
            load = session.load.run(conversations, _holder(session, client), start_s=start_s, end_s=end_s)
            is_interrupted = await _until_over_or_interrupted(load)
        wall_s = loop.time() - start_s
        processor_share = (time.process_time() - cpu_start_s) / wall_s if wall_s > 0 else 0.0
    records = tuple(recorder.records)
    late = distribution(r.sent_s - r.due_s for r in records if r.turn == 0) if session.load.has_due_times else None
    return Measurement(
        load=session.load.name,
        level=session.load.level,
        records=records,
        duration_s=max((record.ended_s for record in records), default=0.0),
        client=ClientLoad(lag_s=distribution(lags_s), processor_share=processor_share, late_s=late),
        is_interrupted=is_interrupted,
    )


def _client(session: Session, connections: aiohttp.ClientSession, now: Callable[[], float], watcher: Watcher) -> Client:
    return Client(
        connections,
        session.address,
        session.settings.endpoint,
        now=now,
        watcher=watcher,
        count_tokens=session.count_tokens,
    )


def _holder(session: Session, client: Client) -> Hold:
    endpoint = session.settings.endpoint

    async def hold(number: int, conversation: Conversation, due_s: float) -> None:
        """To its last turn, or to the first that fails."""
        history = History()
        for position, turn in enumerate(conversation.turns):
            if turn.wait_s:
                await asyncio.sleep(turn.wait_s)
            history = history.asked(turn, endpoint)
            body = request_body(session.settings, history, turn)
            record, text = await client.ask(body, due_s=due_s, conversation=number, turn=position)
            if record.failure is not None:
                return
            if position + 1 < len(conversation.turns):
                history, due_s = (
                    history.answered(text, endpoint),
                    record.ended_s + conversation.turns[position + 1].wait_s,
                )

    return hold


async def _warm_up(session: Session, connections: aiohttp.ClientSession) -> None:
    """One after the other, the first turn of each."""
    client = _client(session, connections, asyncio.get_running_loop().time, Silence())
    for index in range(session.num_warm_up):
        turn = session.workload.conversation(_WARM_UP_INDEX + index).turns[0]
        body = request_body(session.settings, History().asked(turn, session.settings.endpoint), turn)
        record, _ = await client.ask(body, due_s=0.0)
        if (failure := record.failure) is not None:
            raise UserError(
                f"the first request to {session.address.url} failed, so nothing was measured: {failure.kind}: "
                f"{failure.message}"
            )


async def _until_over_or_interrupted(load: Coroutine[Any, Any, None]) -> bool:
    """Whether the user ended it."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(load)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await asyncio.wait([task])
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        task.cancel()
    if task.cancelled():
        return True
    task.result()
    return False


@asynccontextmanager
async def _lag_meter() -> AsyncIterator[list[float]]:
    """How much too late the event loop wakes a task, again and again while the block runs."""
    lags_s: list[float] = []
    task = asyncio.create_task(_measure_lag(lags_s))
    try:
        yield lags_s
    finally:
        task.cancel()


async def _measure_lag(lags_s: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        lags_s.append(max(0.0, loop.time() - due_s - _TIMER_RESOLUTION_S))
