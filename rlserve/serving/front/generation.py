"""From a request's prompts to the engines and back: admission, and what is measured of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from rlserve.engine.requests.delta import RequestDelta
from rlserve.engine.requests.request import Request, RequestOutput
from rlserve.engine.requests.validation import Limits, find_problem
from rlserve.json_log import REQUEST_FIELDS
from rlserve.serving.degradation import Level
from rlserve.serving.front.caller import Caller, current_caller
from rlserve.serving.front.context import ServerContext
from rlserve.serving.observing.record import GENERATION_RECORD
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import problem_error
from rlserve.serving.replicas.live_request import LiveRequest, RequestGroup

_UNKNOWN = ""
"""The engine of a request that ended while no replica had it; and in a run, whose router decides."""


def new_answer_id(prefix: str) -> str:
    """Of an answer, and of the engine's requests for it. Never what a client calls its request: two that choose the
    same name, or one that uses it again, would read each other's tokens."""
    return f"{prefix}{secrets.token_hex(16)}"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Requests that were admitted, to be generated together."""

    context: ServerContext
    requests: tuple[Request, ...]
    affinity: str
    arrived_s: float
    """On the performance counter."""
    caller: Caller = field(default_factory=current_caller)

    @property
    def has_news(self) -> bool:
        """Whether answers can be read while they grow."""
        return True

    async def outputs(self) -> list[RequestOutput]:
        """The whole answers.

        Raises:
            ApiError: the engine refused one, or no replica could answer it.
        """
        opened_s = time.perf_counter()
        async with self._open(streamed=False) as group:
            outputs = await group.outputs()
            for output in outputs:
                if output.error is not None:
                    raise output_error(output.error)
            for live, output in zip(group.lives, outputs, strict=True):
                # After a failover the engine that ended the answer does not know when it began.
                if (first_s := output.time_to_first_token_s) is not None and live.num_failovers == 0:
                    name = live.replica or _UNKNOWN
                    self.context.metrics.observe_first_token(name, opened_s - self.arrived_s + first_s)
                self._count_end(live, output)
            self.caller.usage.num_generated_tokens += sum(
                len(sample.token_ids) for output in outputs for sample in output.samples
            )
            return outputs

    async def news(self) -> AsyncGenerator[list[tuple[int, RequestDelta]]]:
        """What comes, each with the position of its request. Close it to abort the rest."""
        begun: set[int] = set()
        async with self._open(streamed=True) as group:
            while news := await group.next():
                for position, delta in news:
                    live = group.lives[position]
                    if position not in begun and delta.samples:
                        begun.add(position)
                        self._note_first_token(live)
                    if delta.output is not None:
                        self._count_end(live, delta.output)
                self.caller.usage.num_generated_tokens += sum(
                    len(sample.tokens.token_ids) for _, delta in news for sample in delta.samples
                )
                yield news

    @asynccontextmanager
    async def _open(self, *, streamed: bool) -> AsyncIterator[RequestGroup]:
        async with self.context.pool.open(self.requests, self.affinity, streamed=streamed) as group:
            try:
                yield group
            finally:
                names = {live.replica for live in group.lives if live.replica is not None}
                outputs = [live.output for live in group.lives if live.output is not None]
                self.note(outputs, names, sum(live.num_failovers for live in group.lives))

    def note(self, outputs: list[RequestOutput], names: set[str], num_failovers: int) -> None:
        """For the log and the trace. ``names``: of the replicas that answered."""
        if (fields := REQUEST_FIELDS.get()) is not None:
            versions = [sample.tokens.weight_versions for output in outputs for sample in output.samples]
            fields.replica = ",".join(sorted(names)) or None
            fields.weight_version = max((int(each[-1]) for each in versions if len(each)), default=None)
        if (record := GENERATION_RECORD.get()) is not None:
            record.requests, record.outputs = self.requests, outputs
            record.num_failovers = num_failovers

    def _note_first_token(self, live: LiveRequest) -> None:
        first_s = time.perf_counter() - self.arrived_s
        self.context.metrics.observe_first_token(live.replica or _UNKNOWN, first_s)
        if (record := GENERATION_RECORD.get()) is not None and record.time_to_first_token_s is None:
            record.time_to_first_token_s = first_s

    def _count_end(self, live: LiveRequest, output: RequestOutput) -> None:
        self.caller.usage.num_cached_tokens += output.num_cached_tokens
        engine, metrics = live.replica or _UNKNOWN, self.context.metrics
        if output.error is None:
            metrics.observe_end(engine, time.perf_counter() - self.arrived_s)
        for sample in output.samples:
            metrics.count_answer(engine, str(sample.finish_reason))


def admit(context: ServerContext, requests: Sequence[Request], affinity: str, arrived_s: float) -> Generation:
    """Let requests in, or refuse them; their key's minute pays for the most tokens that they can take.

    Raises:
        ApiError: one of them cannot be served, the server ends, there is too much to do, or the key has had its
            tokens of this minute.
    """
    ready = context.pool.limits
    limits = Limits(
        vocab_size=ready.vocab_size,
        max_model_len=ready.max_model_len,
        eos_token_ids=tuple(token for token in ready.eos_token_ids if token < ready.vocab_size),
    )
    for request in requests:
        if (problem := find_problem(request, limits)) is not None:
            raise problem_error(problem)
    if not context.draining.takes_requests:
        raise _busy(context, "draining", "the server is drained, or shutting down")
    num_samples = sum(request.sampling.n for request in requests)
    if context.pool.num_live_samples + num_samples > context.config.limits.max_live_samples:
        raise _busy(context, "queue", "too many answers are under way")
    level = context.level
    if level is Level.REFUSING:
        raise _busy(context, "load", "the server has too much to do")
    if level is Level.SHORTENED:
        requests = [_shortened(request, context.config.degradation.shortened_max_tokens) for request in requests]
    caller = current_caller()
    num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
    caller.hold(num_prompt_tokens + sum(request.sampling.n * request.sampling.max_tokens for request in requests))
    caller.usage.num_prompt_tokens += num_prompt_tokens
    requests = tuple(replace(request, priority=caller.priority(request.priority)) for request in requests)
    if requests[0].adapter is not None:
        affinity = f"{requests[0].adapter}\0{affinity}"  # prompts are cached for each adapter apart
    return Generation(context=context, requests=requests, affinity=affinity, arrived_s=arrived_s, caller=caller)


def find_error(news: Sequence[tuple[int, RequestDelta]]) -> ApiError | None:
    """The first error among some news, if there is one."""
    outputs = (delta.output for _, delta in news if delta.output is not None)
    return next((output_error(output.error) for output in outputs if output.error is not None), None)


def output_error(error: str) -> ApiError:
    """An engine's error output as an answer."""
    if error.startswith("no replica"):
        return ApiError(503, error, headers={"Retry-After": "5"})
    return problem_error(error)


def _busy(context: ServerContext, reason: str, message: str) -> ApiError:
    context.metrics.count_rejection(reason)
    retry_after_s = context.config.degradation.retry_after_s
    return ApiError(503, f"{message}: try again later", headers={"Retry-After": str(retry_after_s)})


def _shortened(request: Request, max_tokens: int) -> Request:
    sampling = request.sampling
    if sampling.max_tokens <= max_tokens:
        return request
    min_tokens = min(sampling.min_tokens, max_tokens)
    return replace(request, sampling=replace(sampling, max_tokens=max_tokens, min_tokens=min_tokens))
