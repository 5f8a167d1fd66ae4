"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rlserve.engine.requests import request as engine
from rlserve.engine.requests.delta import rest_of
from rlserve.engine.requests.request import RequestOutput
from rlserve.serving.answers.chat_answers import chat_choice, chat_chunk, first_chat_chunk
from rlserve.serving.answers.choice import Choice, ChoiceNews, ChoiceOptions
from rlserve.serving.answers.log_probs import prompt_log_probs
from rlserve.serving.answers.usage import usage
from rlserve.serving.front.answer_stream import AnswerStream
from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import ServerContext, context_of
from rlserve.serving.front.description import gives, takes
from rlserve.serving.front.event_stream import EventStream
from rlserve.serving.front.generation import Generation, admit, new_answer_id
from rlserve.serving.front.messages import message_reader, wanted_form
from rlserve.serving.front.prompts import affinity_of_messages, encode_conversation, max_tokens_of
from rlserve.serving.front.whole_answer import whole_answer
from rlserve.serving.protocol.answer_schemas import ChatAnswer
from rlserve.serving.protocol.chat import ChatRequest
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import to_sampling_params

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=takes(ChatRequest) | gives(ChatAnswer, streams=True))
async def chat(request: Request) -> Response:
    """Go on with a conversation."""
    arrived_s = time.perf_counter()
    context = context_of(request)
    asked = await read_model(request, ChatRequest, context.config.limits)
    asked.check(context.config.limits)
    form = wanted_form(context, asked)
    context.check_model(asked.model)
    answer_id = new_answer_id("chatcmpl")
    prompt = await encode_conversation(context, asked)
    if not prompt:
        raise ApiError(400, "the chat template makes no text of this conversation", "messages")
    name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    wanted = getattr(asked, name)
    sampling = to_sampling_params(
        asked,
        max_tokens=max_tokens_of(context, wanted, None, len(prompt), name=name, prompt="messages"),
        end_token_ids=context.end_token_ids,
        num_logprobs=asked.num_logprobs or 0,
        prompt_logprobs=asked.prompt_logprobs,
        structured_output=form,
    )
    engine_request = engine.Request(
        id=answer_id,
        prompt_token_ids=prompt,
        sampling=sampling,
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt or "",
    )
    affinity = affinity_of_messages(asked.messages, asked.prompt_cache_key or asked.user)
    generation = admit(context, [engine_request], affinity, arrived_s)
    base = {"id": answer_id, "created": int(time.time()), "model": context.config.model_name}
    if asked.stream:
        stream = _ChatStream(generation, asked, {**base, "object": "chat.completion.chunk"})
        return EventStream(stream.events(), context.config.limits.stalled_reader_s)
    base["object"] = "chat.completion"
    return await whole_answer(request, generation, lambda outputs: _content(generation, asked, base, outputs))


def _options(context: ServerContext, asked: ChatRequest) -> ChoiceOptions:
    return ChoiceOptions(
        num_logprobs=asked.num_logprobs,
        stop=asked.stop_strings,
        include_stop=asked.include_stop_str_in_output or False,
        skip_special_tokens=asked.skip_special_tokens is not False,
        returns_token_ids=asked.return_token_ids or False,
        returns_weight_versions=asked.return_weight_versions or False,
        end_token_ids=frozenset((*context.pool.limits.eos_token_ids, *context.end_token_ids)),
    )


def _content(
    generation: Generation, asked: ChatRequest, base: dict[str, Any], outputs: Sequence[RequestOutput]
) -> dict[str, Any]:
    """A whole answer."""
    vocabulary, options = generation.context.vocabulary, _options(generation.context, asked)
    (output,), (request,) = outputs, generation.requests
    choices = [Choice(sample.index, vocabulary, options, request.prompt_token_ids) for sample in output.samples]
    readers = [message_reader(generation.context, asked, request) for _ in choices]
    told = [choice.take(rest_of(sample, 0)) for choice, sample in zip(choices, output.samples, strict=True)]
    content = {
        **base,
        "choices": [
            chat_choice(vocabulary, options, news, reader.take(news.text, is_last=True))
            for news, reader in zip(told, readers, strict=True)
        ],
        "usage": usage(
            num_prompt_tokens=len(request.prompt_token_ids),
            num_generated_tokens=sum(choice.num_tokens for choice in choices),
            num_cached_tokens=output.num_cached_tokens,
        ),
    }
    if asked.return_token_ids:
        content["prompt_token_ids"] = list(request.prompt_token_ids)
    if asked.prompt_logprobs is not None:
        content["prompt_logprobs"] = prompt_log_probs(
            vocabulary, request.prompt_token_ids, output.prompt_log_probs, output.prompt_top_log_probs
        )
    return content


class _ChatStream(AnswerStream):
    def __init__(self, generation: Generation, asked: ChatRequest, base: dict[str, Any]) -> None:
        super().__init__(generation, asked, _options(generation.context, asked), base)
        (request,) = generation.requests
        self._prompt_token_ids = request.prompt_token_ids if asked.return_token_ids else None
        self._readers = [message_reader(generation.context, asked, request) for _ in range(self.num_choices)]

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        for index in range(self.num_choices):
            chunk = self.chunk(first_chat_chunk(index))
            if self._prompt_token_ids is not None and index == 0:
                chunk["prompt_token_ids"] = list(self._prompt_token_ids)
            yield chunk

    def choice_chunk(self, news: ChoiceNews) -> dict[str, Any] | None:
        part = self._readers[news.index].take(news.text, is_last=news.finish_reason is not None)
        return chat_chunk(self.vocabulary, self.options, news, part)
