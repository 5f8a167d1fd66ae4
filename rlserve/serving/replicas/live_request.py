"""Requests that are under way, with what came of them: kept, so that another replica can go on from there."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from rlserve.engine.requests.delta import RequestDelta, SampleDelta
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, TopLogProbs


class LiveSample:
    """One sample of a request: all of its tokens, and how many of them its reader has seen.

    Kept in arrays that grow, twenty bytes a token, since thousands of samples may be under way.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._token_ids = array("i")
        self._log_probs, self._behaviour_log_probs = array("f"), array("f")
        self._weight_versions = array("q")
        self._top_log_probs: list[TopLogProbs] = []
        self._num_seen = 0
        self._latest: SampleDelta | None = None
        """What came last, if the reader has seen all before it: nearly always it is what he gets next."""
        self._is_end_seen = False
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there is anything of it."""
        return len(self._token_ids) > 0 or self.finish_reason is not None

    def append(self, delta: SampleDelta) -> None:
        """Take what is new."""
        assert delta.start == len(self._token_ids), f"{delta.start} is not where {len(self._token_ids)} tokens end"
        self._latest = delta if self._num_seen == delta.start else None
        tokens = delta.tokens
        self._token_ids.frombytes(tokens.token_ids.tobytes())
        self._log_probs.frombytes(tokens.log_probs.tobytes())
        self._behaviour_log_probs.frombytes(tokens.behaviour_log_probs.tobytes())
        self._weight_versions.frombytes(tokens.weight_versions.tobytes())
        self._top_log_probs += delta.top_log_probs
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    def take_unseen(self) -> SampleDelta | None:
        """What the reader has not seen, which counts as seen now; None where there is nothing."""
        start = self._num_seen
        has_end = self.finish_reason is not None and not self._is_end_seen
        if start == len(self._token_ids) and not has_end:
            return None
        self._num_seen, self._is_end_seen = len(self._token_ids), self.finish_reason is not None
        if self._latest is not None:
            return self._latest
        return SampleDelta(
            index=self._index,
            start=start,
            tokens=self._tokens(start),
            top_log_probs=tuple(self._top_log_probs[start:]),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def output(self) -> SampleOutput:
        """All of it, to be gone on with elsewhere."""
        return SampleOutput(
            index=self._index,
            tokens=self._tokens(0),
            top_log_probs=tuple(self._top_log_probs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _tokens(self, start: int) -> GeneratedTokens:
        return GeneratedTokens(
            token_ids=np.array(self._token_ids[start:], dtype=np.int32),
            log_probs=np.array(self._log_probs[start:], dtype=np.float32),
            behaviour_log_probs=np.array(self._behaviour_log_probs[start:], dtype=np.float32),
            weight_versions=np.array(self._weight_versions[start:], dtype=np.int64),
        )


class LiveRequest:
    """A request until it ends. What is known of it is kept, streamed or not: it goes on from there where its replica is
    lost."""

    def __init__(self, request: Request, affinity: str, *, streamed: bool, changed: asyncio.Event) -> None:
        """``affinity``: requests with the same are best answered by the same replica. ``changed`` is set by news."""
        self.request = request
        self.affinity = affinity
        self.streamed = streamed
        self.replica: str | None = None
        """Who answers it; None while nobody does."""
        self.num_failovers = 0
        """Replicas that were lost under it."""
        self.output: RequestOutput | None = None
        """The end."""
        self._is_end_seen = False
        self._changed = changed
        self._samples = {index: LiveSample(index) for index in range(request.sampling.n)}

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.output is not None

    def take(self, delta: RequestDelta) -> None:
        """Take what is new."""
        for sample in delta.samples:
            self._samples[sample.index].append(sample)
        self.output = delta.output
        self._changed.set()

    def end(self, error: str) -> None:
        """End it for want of a replica."""
        self.output = RequestOutput(request_id=self.request.id, samples=(), error=error)
        self._changed.set()

    def take_unseen(self) -> RequestDelta | None:
        """What the reader has not seen; None where there is nothing."""
        samples = tuple(news for sample in self._samples.values() if (news := sample.take_unseen()) is not None)
        output = None if self._is_end_seen else self.output
        if not samples and output is None:
            return None
        self._is_end_seen = self.has_ended
        return RequestDelta(request_id=self.request.id, samples=samples, output=output)

    def resumed(self) -> Request:
        """The request for a replica, with the tokens so far."""
        begun = tuple(sample.output() for sample in self._samples.values() if sample.has_begun)
        return replace(self.request, resumed=begun) if begun else self.request


class RequestGroup:
    """The requests of one client's call, read together."""

    def __init__(self, lives: Sequence[LiveRequest], changed: asyncio.Event) -> None:
        self.lives = lives
        self._changed = changed

    async def next(self) -> list[tuple[int, RequestDelta]]:
        """Wait for news; each with the position of its request. Nothing once all have ended and were read."""
        while True:
            self._changed.clear()
            if news := list(self._unseen()):
                return news
            if all(live.has_ended for live in self.lives):
                return []
            await self._changed.wait()

    async def outputs(self) -> list[RequestOutput]:
        """Wait for the end of all, or the first error."""
        while True:
            self._changed.clear()
            outputs = [live.output for live in self.lives]
            if all(outputs) or any(output is not None and output.error is not None for output in outputs):
                return [output for output in outputs if output is not None]
            await self._changed.wait()

    def _unseen(self) -> Iterator[tuple[int, RequestDelta]]:
        for position, live in enumerate(self.lives):
            if (delta := live.take_unseen()) is not None:
                yield position, delta
