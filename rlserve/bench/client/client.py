"""Sends one request after another or many at once, and takes the time of every piece of an answer.

::

    post ──► status? ──► bytes ──► EventStream ──► Answer ──► record
               │           │            │             │
               └───────────┴────────────┴─────────────┴──► a failure, in the record too
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from rlserve.bench.client.answer import Answer
from rlserve.bench.client.event_stream import EventStream
from rlserve.bench.client.failures import (
    DISCONNECTED,
    INTERRUPTED,
    MALFORMED,
    NOT_CONNECTED,
    TIMED_OUT,
    FailedRequestError,
)
from rlserve.bench.client.request import Endpoint
from rlserve.bench.results.record import Failure, RequestRecord, TokenSource

_KEEP_ALIVE_S = 2.0
"""Servers close connections that nobody uses, uvicorn after 5 s, and a request that is just under way then fails. So we
close them first."""
_MAX_BODY_BYTES = 64 << 20


class Watcher(Protocol):
    """Is told what happens, as it happens."""

    def sent(self) -> None:
        """A request."""

    def received(self) -> None:
        """A piece of an answer with tokens."""

    def ended(self, record: RequestRecord) -> None:
        """A request."""


class Silence(Watcher):
    """Watches nothing."""

    def sent(self) -> None: ...

    def received(self) -> None: ...

    def ended(self, record: RequestRecord) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """Where a server is, and what it wants to hear first."""

    url: str
    """Without ``/v1``."""
    api_key: str | None = None
    timeout_s: float = 600.0
    """For a whole request."""

    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


def open_session(address: ServerAddress) -> aiohttp.ClientSession:
    """As many connections as there are requests; proxies of the environment are not used."""
    return aiohttp.ClientSession(
        headers=address.headers(),
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None),
    )


class Client:
    """Asks one endpoint of one server."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: ServerAddress,
        endpoint: Endpoint,
        *,
        now: Callable[[], float],
        watcher: Watcher,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        """``now`` is the run's clock; ``count_tokens`` counts where the server does not say its usage."""
        self._session = session
        self._url = f"{address.url}/v1{endpoint.path}"
        self._timeout_s = address.timeout_s
        self._now = now
        self._watcher = watcher
        self._count_tokens = count_tokens

    async def ask(
        self, body: Mapping[str, Any], *, due_s: float, conversation: int = 0, turn: int = 0
    ) -> tuple[RequestRecord, str]:
        """The record of a request, which may be of a failure, and the text of the answer.

        Cancelled, it still tells the watcher of a record.
        """
        answer, failure, sent_s = Answer(), None, self._now()
        self._watcher.sent()
        try:
            await self._ask(body, answer)
        except FailedRequestError as error:
            failure = error.failure
        except asyncio.CancelledError:
            failure = Failure(INTERRUPTED, "the user ended the benchmark")
            raise
        finally:
            record = self._record(answer, failure, sent_s=sent_s, due_s=due_s, conversation=conversation, turn=turn)
            self._watcher.ended(record)
        return record, answer.text

    async def _ask(self, body: Mapping[str, Any], answer: Answer) -> None:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.post(self._url, json=body, allow_redirects=False) as response,
            ):
                await self._read(response, answer)
        except TimeoutError as error:
            raise FailedRequestError(TIMED_OUT, f"no end of the answer within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise FailedRequestError(NOT_CONNECTED, str(error)) from error
        except aiohttp.InvalidURL as error:
            raise FailedRequestError(NOT_CONNECTED, f"{error} is no URL") from error
        except (aiohttp.ClientError, OSError) as error:
            raise FailedRequestError(DISCONNECTED, f"{type(error).__name__}: {error}") from error
        answer.check_complete()

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        if response.status != 200:
            body = await response.content.read(_MAX_BODY_BYTES)
            raise FailedRequestError(f"status {response.status}", body.decode("utf-8", "replace"))
        if response.content_type == "text/event-stream":
            stream = EventStream()
            async for piece in response.content.iter_any():
                now_s = self._now()
                for data in stream.feed(piece):
                    if answer.add_event(data, now_s):
                        self._watcher.received()
            return
        if response.content_type != "application/json":
            raise FailedRequestError(MALFORMED, f"an answer of type {response.content_type}")
        answer.add_whole((await response.read()).decode("utf-8", "replace"))

    def _record(self, answer: Answer, failure: Failure | None, **known: Any) -> RequestRecord:
        number, source = self._num_tokens(answer)
        return RequestRecord(
            **known,
            ended_s=self._now(),
            chunk_times_s=tuple(answer.chunk_times_s),
            num_input_tokens=answer.num_input_tokens,
            num_cached_tokens=answer.num_cached_tokens,
            num_output_tokens=number,
            token_source=source,
            finish_reason=answer.finish_reason,
            failure=failure,
        )

    def _num_tokens(self, answer: Answer) -> tuple[int, TokenSource]:
        if answer.num_output_tokens is not None:
            return answer.num_output_tokens, TokenSource.USAGE
        if self._count_tokens is not None:
            return self._count_tokens(answer.reasoning + answer.text), TokenSource.TOKENIZER
        if answer.chunk_times_s:
            return len(answer.chunk_times_s), TokenSource.CHUNKS
        return 0, TokenSource.UNKNOWN
