"""Prompts and answers that are refused for their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.answers.choice import Choice
from rlserve.serving.content.base import CONTENT_FILTER
from rlserve.serving.content.filter_stream import FilterStream
from rlserve.serving.front.caller import current_caller
from rlserve.serving.front.context import ServerContext
from rlserve.serving.front.generation import Generation, find_error
from rlserve.serving.front.masks import check_num_chars
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields
from rlserve.serving.replicas.live_request import LiveSample


async def check_prompt(context: ServerContext, prompt: str, param: str) -> None:
    """Raise ``ApiError`` for a prompt that is refused.

    Args:
        param: that it came in.
    """
    check_num_chars(context, [prompt], param)
    if context.filtering is None or (found := await context.filtering.find(prompt)) is None:
        return
    context.filtering.count("prompt", found.kind)
    current_caller().refused = {"source": "prompt", "kind": found.kind}
    raise ApiError(400, "the content filter of this server refuses the prompt", param, code=CONTENT_FILTER)


async def check_token_prompt_text(context: ServerContext, tokens: Sequence[int]) -> None:
    """The same of a prompt of tokens. Too many, or such as there are not, are refused elsewhere."""
    ready = context.pool.limits
    if context.filtering is None or len(tokens) > ready.max_model_len:
        return
    known = [token for token in tokens if 0 <= token < ready.vocab_size]
    await check_prompt(context, context.vocabulary.decode(known, skip_special_tokens=False), "prompt")


def filter_of(
    context: ServerContext, asked: SamplingFields, num_logprobs: int | None, *, streams: bool
) -> Callable[[], FilterStream] | None:
    """What makes the filter of each answer; None where all is told.

    Raises:
        ApiError: a stream is to tell tokens, which would come before the text that is held back.
    """
    if context.filtering is None or not context.filtering.filters_answers:
        return None
    wanted = {"logprobs": num_logprobs is not None, "return_token_ids": bool(asked.return_token_ids)}
    for name, is_wanted in wanted.items():
        if is_wanted and streams:
            raise ApiError(400, f"{name} cannot be streamed: this server filters its answers (content.filter)", name)
    return context.filtering.answer


async def filtered_outputs(generation: Generation, probes: Sequence[Choice]) -> list[RequestOutput]:
    """Whole answers, which are aborted as soon as all have ended or are refused.

    Args:
        probes: one for each answer, which nobody else reads.

    Raises:
        ApiError: the engine refused a request, or no replica could answer it.
    """
    requests = generation.requests
    num_samples = requests[0].sampling.n
    lives = [LiveSample(place % num_samples) for place in range(len(probes))]
    ends = [RequestOutput(request_id=request.id, samples=()) for request in requests]
    async with aclosing(generation.news()) as news:
        async for each in news:
            if (error := find_error(each)) is not None:
                raise error
            for position, delta in each:
                ends[position] = delta.output or ends[position]
                for sample in delta.samples:
                    place = position * num_samples + sample.index
                    if not probes[place].has_ended:
                        lives[place].append(sample)
                        probes[place].take(sample)
            if nothing_follows(probes):
                break
    rows = [lives[start : start + num_samples] for start in range(0, len(lives), num_samples)]
    return [replace(end, samples=tuple(live.output() for live in row)) for end, row in zip(ends, rows, strict=True)]


def nothing_follows(choices: Sequence[Choice]) -> bool:
    """Whether all answers have ended, and one at least by a refusal: what is generated on is nobody's."""
    return all(choice.has_ended for choice in choices) and any(choice.refused_for is not None for choice in choices)


def note_refused_answer(generation: Generation, kind: str) -> None:
    """Count it, for metrics and for the audit log."""
    filtering = generation.context.filtering
    assert filtering is not None
    filtering.count("answer", kind)
    generation.caller.refused = {"source": "answer", "kind": kind}
