"""``POST /generate``, ``POST /generate_stream`` and ``GET /info``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve import __version__
from rlserve.engine.requests import request as engine
from rlserve.engine.requests.delta import SampleDelta, rest_of
from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.answers.choice import Choice, ChoiceOptions
from rlserve.serving.answers.tgi_answers import HeldTokens, TgiAnswer
from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.event_stream import EventStream, event
from rlserve.serving.front.filters import check_prompt, filter_of, filtered_outputs, note_refused_answer
from rlserve.serving.front.generation import Generation, admit, find_error, new_answer_id
from rlserve.serving.front.masks import check_tgi
from rlserve.serving.front.prompts import affinity_of_tokens, encode, max_tokens_of
from rlserve.serving.front.whole_answer import json_response, whole_answer
from rlserve.serving.protocol.answer_schemas import TgiAnswerContent, TgiInfo
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields
from rlserve.serving.protocol.tgi import DEFAULT_MAX_NEW_TOKENS, GenerateRequest, tgi_error

router = APIRouter()


@router.post("/generate", openapi_extra=takes(GenerateRequest) | gives(TgiAnswerContent))
async def generate(request: Request) -> Response:
    """The whole answer."""
    generation, asked = await _begin(request)
    return await whole_answer(request, _outputs(generation), lambda outputs: _content(generation, asked, outputs))


@router.post("/generate_stream", response_class=Response, openapi_extra=takes(GenerateRequest) | gives(streams=True))
async def generate_stream(request: Request) -> Response:
    """Token by token."""
    generation, asked = await _begin(request)
    if asked.parameters.decoder_input_details:
        raise ApiError(422, "decoder_input_details cannot be streamed", "decoder_input_details")
    return EventStream(_events(generation, asked), generation.context.config.limits.stalled_reader_s)


@router.get("/info", openapi_extra=gives(TgiInfo))
async def info(request: Request) -> Response:
    """What the server is."""
    context = context_of(request)
    limits, ready = context.config.limits, context.pool.limits
    return json_response(
        {
            "model_id": context.config.model_name,
            "model_dtype": context.config.engine.dtype,
            "max_concurrent_requests": limits.max_live_samples,
            "max_best_of": 1,
            "max_stop_sequences": limits.max_stop,
            "max_input_tokens": ready.max_model_len - 1,
            "max_total_tokens": ready.max_model_len,
            "router": "rlserve",
            "version": __version__,
        }
    )


async def _begin(request: Request) -> tuple[Generation, GenerateRequest]:
    arrived_s = time.perf_counter()
    context = context_of(request)
    asked = await read_model(request, GenerateRequest, context.config.limits)
    asked.check(context.config.limits)
    check_tgi(context)
    await check_prompt(context, asked.inputs, "inputs")
    prompt = await encode(context, asked.inputs, add_special_tokens=True)
    if asked.parameters.truncate is not None:
        prompt = prompt[-asked.parameters.truncate :]
    if not prompt:
        raise ApiError(422, "inputs cannot be empty", "inputs")
    wanted = asked.parameters.max_new_tokens
    sampling = asked.sampling(
        max_tokens=max_tokens_of(
            context, wanted, DEFAULT_MAX_NEW_TOKENS, len(prompt), name="max_new_tokens", prompt="inputs"
        ),
        end_token_ids=context.end_token_ids,
    )
    engine_request = engine.Request(id=new_answer_id("tgi-"), prompt_token_ids=prompt, sampling=sampling)
    return admit(context, [engine_request], affinity_of_tokens(prompt, None), arrived_s), asked


async def _outputs(generation: Generation) -> list[RequestOutput]:
    """The whole answer.

    Raises:
        ApiError: it is refused for its text, or cannot be had.
    """
    new_filter = filter_of(generation.context, SamplingFields(), None, streams=False)
    if new_filter is None:
        return await generation.outputs()
    request, vocabulary = generation.requests[0], generation.context.vocabulary
    probe = Choice(0, vocabulary, ChoiceOptions(new_filter=new_filter), request.prompt_token_ids)
    outputs = await filtered_outputs(generation, [probe])
    if probe.refused_for is not None:
        raise _refused(generation, probe.refused_for)
    return outputs


def _refused(generation: Generation, kind: str) -> ApiError:
    """There is no ``finish_reason`` for it."""
    note_refused_answer(generation, kind)
    return ApiError(424, "the content filter of this server refuses the answer")


def _answer(generation: Generation, asked: GenerateRequest) -> TgiAnswer:
    vocabulary = generation.context.vocabulary
    return TgiAnswer(vocabulary, generation.requests[0].prompt_token_ids, vocabulary.special_ids, asked.parameters.seed)


def _full_text(generation: Generation, asked: GenerateRequest, text: str) -> str:
    return asked.inputs + text if asked.parameters.return_full_text else text


def _content(generation: Generation, asked: GenerateRequest, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    (output,), answer = outputs, _answer(generation, asked)
    delta = rest_of(output.samples[0], 0)
    tokens = list(answer.take(delta))
    content: dict[str, Any] = {"generated_text": _full_text(generation, asked, answer.text)}
    if asked.parameters.details or asked.parameters.decoder_input_details:
        wants_prompt = asked.parameters.decoder_input_details
        prompt = generation.requests[0].prompt_token_ids
        content["details"] = {
            **answer.details(delta),
            "prefill": answer.prefill(prompt, output) if wants_prompt else [],
            "tokens": tokens,
        }
        if asked.parameters.top_n_tokens:
            content["details"]["top_tokens"] = answer.top_tokens
    return content


async def _events(generation: Generation, asked: GenerateRequest) -> AsyncGenerator[bytes]:
    answer, new_filter = (
        _answer(generation, asked),
        filter_of(generation.context, SamplingFields(), None, streams=False),
    )
    held = None if new_filter is None else HeldTokens(new_filter())
    async with aclosing(generation.news()) as news:
        async for each in news:
            if (error := find_error(each)) is not None:
                yield event(tgi_error(error))
                return
            for sample in (sample for _, delta in each for sample in delta.samples):
                events = list(_token_events(generation, asked, answer, sample))
                if held is not None:
                    events = held.push(events, is_last=sample.finish_reason is not None)
                if content := b"".join(map(event, events)):
                    yield content
            if held is not None and held.refused_for is not None:
                yield event(tgi_error(_refused(generation, held.refused_for)))
                return


def _token_events(
    generation: Generation, asked: GenerateRequest, answer: TgiAnswer, sample: SampleDelta
) -> Iterator[dict[str, Any]]:
    """One for each new token; the last of the answer tells how it ended."""
    first = len(answer.tokens)
    tokens = list(answer.take(sample))
    for number, token in enumerate(tokens, start=first):
        content: dict[str, Any] = {"index": number + 1, "token": token, "generated_text": None, "details": None}
        if asked.parameters.top_n_tokens:
            content["top_tokens"] = answer.top_tokens[number] if number < len(answer.top_tokens) else []
        if sample.finish_reason is not None and number + 1 == first + len(tokens):
            content["generated_text"] = _full_text(generation, asked, answer.text)
            num_prompt_tokens = len(generation.requests[0].prompt_token_ids)
            content["details"] = {**answer.details(sample), "input_length": num_prompt_tokens}
        yield content
