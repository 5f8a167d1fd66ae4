"""``POST /v1/completions``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve.engine.requests import request as engine
from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.answers.choice import ChoiceNews
from rlserve.serving.answers.completion_answers import CompletionChoice, Echo
from rlserve.serving.answers.usage import usage
from rlserve.serving.front.answer_stream import AnswerStream
from rlserve.serving.front.beam_generation import beam_generation
from rlserve.serving.front.body import read_model
from rlserve.serving.front.choices import Choices, choice_options
from rlserve.serving.front.context import ServerContext, context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.event_stream import EventStream
from rlserve.serving.front.filters import check_prompt, check_token_prompt_text
from rlserve.serving.front.generation import admit, new_answer_id
from rlserve.serving.front.masks import check_token_prompt
from rlserve.serving.front.prompts import affinity_of_tokens, encode, max_tokens_of
from rlserve.serving.front.whole_answer import whole_answer
from rlserve.serving.protocol.answer_schemas import CompletionAnswer
from rlserve.serving.protocol.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import to_sampling_params
from rlserve.serving.protocol.structured import structured_output_of

router = APIRouter()


@router.post("/v1/completions", openapi_extra=takes(CompletionRequest) | gives(CompletionAnswer, streams=True))
async def complete(request: Request) -> Response:
    """Complete one or several prompts."""
    arrived_s = time.perf_counter()
    asked = await read_model(request, CompletionRequest, context_of(request).config.limits)
    return await answer_completion(request, asked, arrived_s)


async def answer_completion(request: Request, asked: CompletionRequest, arrived_s: float) -> Response:
    """Complete the prompts of a body that was read.

    Args:
        arrived_s: when the request did, on the performance counter.
    """
    context = context_of(request)
    asked.check(context.config.limits)
    context.check_model(asked.model)
    answer_id = new_answer_id("cmpl-")
    prompts = [await _tokens(context, asked, prompt) for prompt in asked.prompts]
    requests = [
        _engine_request(context, asked, f"{answer_id}-{position}", prompt) for position, prompt in enumerate(prompts)
    ]
    generation = admit(context, requests, affinity_of_tokens(prompts[0], asked.user), arrived_s)
    generation = beam_generation(generation, asked)
    choices = Choices(generation, choice_options(context, asked, asked.logprobs, streams=bool(asked.stream)))
    base = {
        "id": answer_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": asked.model or context.config.model_name,
    }
    if asked.stream:
        stream = _CompletionStream(choices, asked, base)
        return EventStream(stream.events(), context.config.limits.stalled_reader_s)
    return await whole_answer(request, choices.outputs(), lambda outputs: _content(choices, asked, base, outputs))


async def _tokens(context: ServerContext, asked: CompletionRequest, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        await check_prompt(context, prompt, "prompt")
        tokens = await encode(
            context, await context.readable(prompt), add_special_tokens=asked.add_special_tokens is not False
        )
    else:
        check_token_prompt(context)
        tokens = tuple(prompt)
        await check_token_prompt_text(context, tokens)
    if asked.truncate_prompt_tokens is not None:
        num_kept = asked.truncate_prompt_tokens
        tokens = tokens[:num_kept] if asked.truncation_side == "right" else tokens[-num_kept:]
    if not tokens:
        raise ApiError(400, "the prompt is empty: the model needs at least one token to go on from", "prompt")
    return tokens


def _engine_request(
    context: ServerContext, asked: CompletionRequest, request_id: str, prompt: tuple[int, ...]
) -> engine.Request:
    echoes_log_probs = asked.echo and asked.logprobs is not None
    num_logprobs = context.count_logprobs("logprobs", asked.logprobs)
    of_prompt = context.count_logprobs("prompt_logprobs", asked.prompt_logprobs)
    sampling = to_sampling_params(
        asked,
        max_tokens=max_tokens_of(context, asked.max_tokens or _least(asked), DEFAULT_MAX_TOKENS, len(prompt)),
        end_token_ids=context.end_token_ids,
        num_logprobs=num_logprobs or 0,
        prompt_logprobs=num_logprobs if echoes_log_probs else of_prompt,
        structured_output=structured_output_of(asked),
    )
    return engine.Request(
        id=request_id,
        prompt_token_ids=prompt,
        sampling=sampling,
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt or "",
        adapter=context.check_model(asked.model),
    )


def _least(asked: CompletionRequest) -> int | None:
    """The engine always generates one token; with ``max_tokens=0`` it is not told."""
    return 1 if asked.max_tokens == 0 else asked.max_tokens


def _tellers(choices: Choices, asked: CompletionRequest) -> list[CompletionChoice]:
    """One for each choice."""
    vocabulary, options = choices.vocabulary, choices.options

    def echo(tokens: tuple[int, ...]) -> Echo | None:
        text = vocabulary.decode(tokens, skip_special_tokens=options.skip_special_tokens) if asked.echo else None
        return None if text is None else Echo(text=text, token_ids=tokens)

    return [
        CompletionChoice(
            vocabulary,
            options,
            request.prompt_token_ids,
            echo=echo(request.prompt_token_ids),
            is_told=asked.max_tokens != 0,
        )
        for request in choices.generation.requests
        for _ in range(asked.num_samples)
    ]


def _content(
    choices: Choices, asked: CompletionRequest, base: dict[str, Any], outputs: Sequence[RequestOutput]
) -> dict[str, Any]:
    """A whole answer."""
    contents: list[dict[str, Any]] = []
    output_of_each = [output for output in outputs for _ in output.samples]
    rows = zip(_tellers(choices, asked), choices.whole(outputs), output_of_each, strict=True)
    for teller, news, output in rows:
        content = {"token_ids": None, "prompt_token_ids": None, **teller.content(news, output)}
        content["prompt_logprobs"] = None if asked.prompt_logprobs is None else teller.prompt_log_probs(output)
        contents.append(content)
    return {
        **base,
        "choices": contents,
        "usage": usage(
            num_prompt_tokens=choices.num_prompt_tokens,
            num_generated_tokens=0 if asked.max_tokens == 0 else choices.num_generated_tokens,
            num_cached_tokens=choices.num_cached_tokens,
        ),
        **choices.timings(),
    }


class _CompletionStream(AnswerStream):
    def __init__(self, choices: Choices, asked: CompletionRequest, base: dict[str, Any]) -> None:
        super().__init__(choices, asked, base)
        self._tellers = _tellers(choices, asked)

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def choice_chunk(self, news: ChoiceNews) -> dict[str, Any]:
        return self._tellers[news.index].content(news)
