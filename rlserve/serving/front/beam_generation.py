"""Beam search over the engines: each token of each beam is a request, whose beginning is in the prefix cache.

::

    step: requests for the live beams of all prompts ──► one token each, with the likeliest ones ──► BeamSearch.advance

At the front and not in an engine, so that beams are scheduled, aborted, limited and brought to other replicas as all
requests are. A step computes of each beam what its last block of the cache lacks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
from rlserve.serving.front.beam_search import Beam, BeamSearch, NextTokens
from rlserve.serving.front.generation import Generation, output_error
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields


@dataclass(frozen=True, kw_only=True)
class BeamGeneration(Generation):
    """Requests whose ``n`` samples are the best answers that a search as wide finds. It has whole answers alone."""

    length_penalty: float

    @property
    def has_news(self) -> bool:
        """Never: which answers are best is known at the end."""
        return False

    async def outputs(self) -> list[RequestOutput]:
        """The best answers to each prompt, best first.

        Raises:
            ApiError: the engine refused a beam, or no replica could follow it.
        """
        opened_s = time.perf_counter()
        searches = [self._search(request) for request in self.requests]
        ends = [RequestOutput(request_id=request.id, samples=()) for request in self.requests]
        replicas = set[str]()
        num_steps, num_failovers = 0, 0
        while any(search.live for search in searches):
            asked = list(self._next_requests(searches, num_steps))
            async with self.context.pool.open(asked, self.affinity, streamed=False) as group:
                outputs = await group.outputs()
                for output in outputs:
                    if output.error is not None:
                        raise output_error(output.error)
                replicas |= {live.replica for live in group.lives if live.replica is not None}
                num_failovers += sum(live.num_failovers for live in group.lives)
            self.caller.usage.num_generated_tokens += len(asked)
            if num_steps == 0:
                ends = [replace(output, request_id=end.request_id) for output, end in zip(outputs, ends, strict=True)]
                self._observe_first(ends, replicas, opened_s)
            rows = iter(outputs)
            for request, search in zip(self.requests, searches, strict=True):
                search.advance([_next_tokens(next(rows), request) for _ in search.live])
                await asyncio.sleep(0)  # many wide searches are not to hold others up
            num_steps += 1
        seconds = time.perf_counter() - opened_s
        found = [
            replace(end, samples=_samples(search, request), time_to_last_token_s=seconds)
            for end, search, request in zip(ends, searches, self.requests, strict=True)
        ]
        self._note_found(found, replicas, num_failovers)
        return found

    def _search(self, request: Request) -> BeamSearch:
        sampling = request.sampling
        of_model = () if sampling.ignore_eos else self.context.pool.limits.eos_token_ids
        return BeamSearch(
            width=sampling.n,
            max_tokens=sampling.max_tokens,
            length_penalty=self.length_penalty,
            end_token_ids=frozenset((*of_model, *sampling.stop_token_ids)),
        )

    def _next_requests(self, searches: list[BeamSearch], num_steps: int) -> Iterator[Request]:
        for request, search in zip(self.requests, searches, strict=True):
            sampling = _of_next_token(request.sampling, self.context.pool.limits.vocab_size)
            for place, beam in enumerate(search.live):
                yield replace(
                    request,
                    id=f"{request.id}-{num_steps}-{place}",
                    prompt_token_ids=(*request.prompt_token_ids, *beam.token_ids),
                    sampling=sampling,
                )

    def _observe_first(self, outputs: list[RequestOutput], replicas: set[str], opened_s: float) -> None:
        name = min(replicas, default="")
        for output in outputs:
            self.caller.usage.num_cached_tokens += output.num_cached_tokens
            if (first_s := output.time_to_first_token_s) is not None:
                self.context.metrics.observe_first_token(name, opened_s - self.arrived_s + first_s)

    def _note_found(self, outputs: list[RequestOutput], replicas: set[str], num_failovers: int) -> None:
        name, metrics = min(replicas, default=""), self.context.metrics
        for output in outputs:
            metrics.observe_end(name, time.perf_counter() - self.arrived_s)
            for sample in output.samples:
                metrics.count_answer(name, str(sample.finish_reason))
        self.note(outputs, replicas, num_failovers)


def beam_generation(generation: Generation, asked: SamplingFields) -> Generation:
    """What was admitted, as a search where one is asked for.

    Raises:
        ApiError: there are fewer tokens than beams.
    """
    if not asked.use_beam_search:
        return generation
    num_tokens = len(set(asked.allowed_token_ids or ())) or generation.context.pool.limits.vocab_size
    if asked.num_samples > num_tokens:
        raise ApiError(400, f"n: a search of {asked.num_samples} beams needs as many tokens, and has {num_tokens}", "n")
    given = {each.name: getattr(generation, each.name) for each in fields(Generation)}
    return BeamGeneration(**given, length_penalty=asked.wanted_length_penalty)


def _of_next_token(sampling: SamplingParams, vocab_size: int) -> SamplingParams:
    """What is asked of an engine: the raw log-probabilities, before all rules."""
    allowed = tuple(dict.fromkeys(sampling.allowed_token_ids))
    num_top = max(2 * sampling.n, sampling.num_top_log_probs)
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        ignore_eos=True,
        num_top_log_probs=0 if allowed else min(num_top, vocab_size),
        log_prob_token_ids=allowed,
    )


def _next_tokens(output: RequestOutput, request: Request) -> NextTokens:
    (sample,) = output.samples
    if not sample.top_log_probs:
        raise ApiError(503, "the search was broken off: try again", headers={"Retry-After": "5"})
    (top,) = sample.top_log_probs
    if allowed := frozenset(request.sampling.allowed_token_ids):
        top = tuple(sorted((each for each in top if each[0] in allowed), key=lambda each: -each[1]))
    return NextTokens(likeliest=top, weight_version=sample.weight_versions[0])


def _samples(search: BeamSearch, request: Request) -> tuple[SampleOutput, ...]:
    num_told = request.sampling.num_top_log_probs
    return tuple(_sample(beam, index, num_told) for index, beam in enumerate(search.best))


def _sample(beam: Beam, index: int, num_told: int) -> SampleOutput:
    tokens = GeneratedTokens.of(
        beam.token_ids,
        beam.log_probs,
        beam.log_probs,
        [each.weight_version for each in beam.next_tokens],
    )
    return SampleOutput(
        index=index,
        tokens=tokens,
        top_log_probs=tuple(each.likeliest[:num_told] for each in beam.next_tokens) if num_told else (),
        finish_reason=FinishReason.LENGTH if beam.end_token_id is None else FinishReason.STOP,
        stop_reason=beam.end_token_id,
    )
