"""A reward that a server gives: answers are posted to a URL in batches, and scores come back as JSON.

::

    POST URL   {"samples": [{"id": "0:5/1", "prompt": …, "response": …, "answer": …, "finished": …,
                             "messages": …, "row": …, "turns": …, "environment_reward": …}, …]}
    200        {"scores": [{"id": "0:5/1", "score": 0.5, "acc": 1}, …]}        a score of null leaves the answer out
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import aiohttp

from rlserve.errors import RewardError
from rlserve.rollout.rewards.base import Reward, RewardSample, Score
from rlserve.rollout.rewards.config import HttpRewardConfig
from rlserve.rollout.rewards.http_answer import LieError, read_answer

logger = logging.getLogger(__name__)

_TOO_MANY_REQUESTS = 429
_SHARE_OF_DEADLINE = 0.9
"""Of ``reward.timeout_s``: past it requests are given up, so that the error can name the server."""
_MAX_ANSWER_BYTES = 16 << 20
_MAX_SHOWN_CHARACTERS = 200


class _GivenUpError(Exception):
    """A request that gave no scores; the message says why."""


class _TryAgainError(_GivenUpError):
    """One that may be answered at another time."""


class HttpReward(Reward):
    """Posts batches side by side, and again where the server is not there or not well."""

    def __init__(self, url: str, config: HttpRewardConfig, *, timeout_s: float) -> None:
        """``timeout_s`` bounds one call of ``score``, all requests and waits together.

        Raises:
            RewardError: the environment lacks the token that the configuration names.
        """
        self._url = url
        self._config = config
        self._deadline_s = _SHARE_OF_DEADLINE * timeout_s
        self._headers = {"Authorization": f"Bearer {_token(config.token_variable)}"} if config.token_variable else {}
        # One event loop and one session for all groups: connections are kept open between them.
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None

    @property
    def scores_at_once(self) -> bool:
        return True

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return self._loop.run_until_complete(self._score(samples))

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        self._loop.close()

    async def _score(self, samples: Sequence[RewardSample]) -> list[Score]:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        size = self._config.max_samples_per_request
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        free = asyncio.Semaphore(self._config.max_concurrent_requests)
        scored = await asyncio.gather(*(self._score_batch(self._session, batch, free) for batch in batches))
        return [score for batch in scored for score in batch]

    async def _score_batch(
        self, session: aiohttp.ClientSession, batch: Sequence[RewardSample], free: asyncio.Semaphore
    ) -> list[Score]:
        """Its scores; where there are none, each is an error that says why."""
        failures: list[str] = []
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._try_until_answered(session, batch, free, failures)
        except TimeoutError:
            last = f"; the last failure: {failures[-1]}" if failures else ""
            why = f"no scores within {self._deadline_s:g} s{last}; raise reward.timeout_s, or ask less of the server"
        except _GivenUpError as error:
            why = str(error)
        message = f"reward {self._url} on {len(batch)} answers from {batch[0].id} on: {why}"
        return [Score(error=message) for _ in batch]

    async def _try_until_answered(
        self,
        session: aiohttp.ClientSession,
        batch: Sequence[RewardSample],
        free: asyncio.Semaphore,
        failures: list[str],
    ) -> list[Score]:
        """Adds to ``failures`` what went wrong on the way.

        Raises:
            _GivenUpError: the server refuses, answers what is no answer, or fails each time.
        """
        config = self._config
        for attempt in range(config.num_retries + 1):
            if attempt:
                await asyncio.sleep(config.retry_delay_s * 2 ** (attempt - 1))
            async with free:
                try:
                    return await self._post(session, batch)
                except _TryAgainError as error:
                    failures.append(str(error))
                    logger.warning("reward %s: %s (attempt %d)", self._url, error, attempt + 1)
        times = f"{len(failures)} times" if len(failures) > 1 else "once"
        raise _GivenUpError(
            f"failed {times}, the last time: {failures[-1]}; is the server up and reachable from this machine? "
            "Requests and waits are set by reward.http"
        )

    async def _post(self, session: aiohttp.ClientSession, batch: Sequence[RewardSample]) -> list[Score]:
        samples = [_shown(sample) for sample in batch]
        timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
        try:
            async with session.post(self._url, json={"samples": samples}, timeout=timeout) as response:
                body = await _read(response)
        except TimeoutError:
            raise _TryAgainError(f"no answer within reward.http.timeout_s={self._config.timeout_s:g}") from None
        except aiohttp.InvalidURL:
            raise _GivenUpError("is no URL") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from None
        if response.status >= 500 or response.status == _TOO_MANY_REQUESTS:
            raise _TryAgainError(f"status {response.status} {response.reason}: {_short(body)}")
        if response.status != 200:
            raise _GivenUpError(f"status {response.status} {response.reason}, which is not tried again: {_short(body)}")
        try:
            return read_answer(body, [sample.id for sample in batch])
        except LieError as error:
            raise _GivenUpError(f"{error}; the server must answer as docs/rewards.md says: {_short(body)}") from None


def _token(variable: str) -> str:
    token = os.environ.get(variable)
    if not token:
        raise RewardError(
            f"reward.http.token_variable={variable}: the environment has no such variable, or it is empty"
        )
    return token


def _shown(sample: RewardSample) -> dict[str, Any]:
    """What the server is sent of a sample, as JSON has it."""
    fields = {
        "id": sample.id,
        "prompt": sample.prompt,
        "response": sample.response,
        "answer": sample.answer,
        "finished": sample.finished,
        "messages": sample.messages,
        "row": dict(sample.row),
        "turns": sample.turns,
        "environment_reward": sample.environment_reward,
    }
    shown: dict[str, Any] = json.loads(json.dumps(fields, default=str))
    return shown


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, as long as it is of a size that an answer may have."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise _GivenUpError(f"the answer is longer than {_MAX_ANSWER_BYTES >> 20} MiB: {_short(bytes(body))}")
    return bytes(body)


def _short(body: bytes) -> str:
    text = body[: 4 * _MAX_SHOWN_CHARACTERS].decode(errors="replace")
    return repr(text[:_MAX_SHOWN_CHARACTERS]) + ("…" if len(text) > _MAX_SHOWN_CHARACTERS else "")
