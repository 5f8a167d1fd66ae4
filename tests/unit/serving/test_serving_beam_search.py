"""``use_beam_search`` over HTTP, with an engine that knows what is likely after each token."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from serving_fakes import KEY, VOCABULARY, FakePool, fake_context, generated
from starlette.testclient import TestClient
from starlette.types import Message

from rlserve.engine.requests.delta import RequestDelta
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.serving.config import AccessConfig
from rlserve.serving.content.base import ContentFilter, Found
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.content.filtering import Filtering
from rlserve.serving.front.app import create_app
from rlserve.serving.front.gate import Gate
from rlserve.serving.keys import read_keys
from rlserve.serving.replicas.live_request import LiveRequest, RequestGroup

A, B, C, D = VOCABULARY.encode("abcd", add_special_tokens=False)
END = 2
TABLE = {A: {B: 0.5, C: 0.3, D: 0.15, END: 0.05}, B: {D: 0.4, C: 0.35, A: 0.2, END: 0.05}}
OTHERWISE = {END: 0.6, A: 0.2, B: 0.15, C: 0.05}
"""After any other token."""


class KnowingPool(FakePool):
    """Says of each prompt's last token what may follow."""

    hangs_at = -1
    """The number of a call that nobody answers."""
    num_opened = 0

    @asynccontextmanager
    async def open(self, requests: Sequence[Request], affinity: str, *, streamed: bool) -> AsyncIterator[RequestGroup]:
        assert not streamed
        self.requests += requests
        self.num_opened += 1
        lives = [LiveRequest(request, affinity, streamed=False, changed=asyncio.Event()) for request in requests]
        self.opened.set()
        try:
            for live in lives:
                if self.num_opened != self.hangs_at:
                    live.take(RequestDelta(request_id=live.request.id, samples=(), output=self._output(live.request)))
            yield RequestGroup(lives, asyncio.Event())
        finally:
            self.aborted += [live.request.id for live in lives if not live.has_ended]

    def _output(self, request: Request) -> RequestOutput:
        if self.error is not None:
            return RequestOutput(request_id=request.id, samples=(), error=self.error)
        sampling = request.sampling
        assert (sampling.n, sampling.max_tokens) == (1, 1)
        found = TABLE.get(request.prompt_token_ids[-1], OTHERWISE)
        wanted = sampling.log_prob_token_ids or tuple(found)[: sampling.num_top_log_probs]
        top = tuple((token, math.log(found.get(token, 1e-9))) for token in wanted)
        sample = SampleOutput(
            index=0, tokens=generated([wanted[0]]), top_log_probs=(top,), finish_reason=FinishReason.LENGTH
        )
        return RequestOutput(request_id=request.id, samples=(sample,), num_cached_tokens=1)


@pytest.fixture
def pool() -> KnowingPool:
    return KnowingPool()


@pytest.fixture
def client(pool: KnowingPool) -> TestClient:
    return TestClient(create_app(fake_context(pool=pool)))


BEAMS: dict[str, Any] = {"prompt": "a", "use_beam_search": True, "n": 2, "max_tokens": 3, "return_token_ids": True}


def test_the_best_answers_come_first(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={**BEAMS, "logprobs": 1}).json()
    best, second = answer["choices"]
    # a→b (.5) →d (.4) →end (.6), against a→c (.3) →end (.6): by the mean of the logarithms
    assert [best["token_ids"], second["token_ids"]] == [[B, D, END], [B, C, END]]
    assert [best["text"], second["text"]] == ["bd", "bc"]
    assert [best["finish_reason"], best["stop_reason"]] == ["stop", None]
    assert best["logprobs"]["token_logprobs"] == pytest.approx([math.log(p) for p in (0.5, 0.4, 0.6)], abs=1e-6)
    assert [len(top) for top in best["logprobs"]["top_logprobs"]] == [1, 1, 1]
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens"] == 1


def test_a_length_penalty_below_zero_is_for_short_answers(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={**BEAMS, "length_penalty": 0.0}).json()
    assert answer["choices"][0]["token_ids"] == [C, END]


def test_what_each_step_asks(client: TestClient, pool: KnowingPool) -> None:
    body = {**BEAMS, "cache_salt": "s", "priority": 3, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body).json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    assert [len(request.prompt_token_ids) for request in pool.requests] == [1, 2, 2, 3, 3]
    assert {(request.cache_salt, request.priority) for request in pool.requests} == {("s", 3)}
    assert len({request.id for request in pool.requests}) == 5
    assert {request.sampling.num_top_log_probs for request in pool.requests} == {4}


def test_log_probs_that_are_told_change_no_answer(client: TestClient) -> None:
    told = [client.post("/v1/completions", json={**BEAMS, "logprobs": count}).json() for count in (0, 10)]
    assert [[choice["token_ids"] for choice in one["choices"]] for one in told] == [[[B, D, END], [B, C, END]]] * 2


def test_prompts_are_searched_side_by_side(client: TestClient, pool: KnowingPool) -> None:
    answer = client.post("/v1/completions", json={**BEAMS, "prompt": ["a", "d", "a"]}).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[:2] == texts[4:] == ["bd", "bc"]
    assert texts[2] == ""
    assert pool.num_opened <= 3


def test_allowed_tokens_are_all_that_is_followed(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={**BEAMS, "allowed_token_ids": [C, D]}).json()
    assert {token for choice in answer["choices"] for token in choice["token_ids"]} <= {C, D}
    refused = client.post("/v1/completions", json={**BEAMS, "allowed_token_ids": [C]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_tokens_that_are_named_end_an_answer(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={**BEAMS, "stop_token_ids": [B]}).json()
    assert answer["choices"][0]["token_ids"] == [B]
    assert answer["choices"][0]["stop_reason"] == B


def test_a_conversation_is_searched_too(client: TestClient, pool: KnowingPool) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "use_beam_search": True, "n": 2, "max_tokens": 2}
    answer = client.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 2}).json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    assert [len(token["top_logprobs"]) for token in answer["choices"][0]["logprobs"]["content"]] == [2]
    assert len(pool.requests[0].prompt_token_ids) > 1


FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"stream": True}, "stream"),
        ({"stop": "d"}, "stop"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"response_format": FORM}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"logprobs": 1, "logprob_token_ids": [5]}, "logprob_token_ids"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"length_penalty": 11.0}, "length_penalty"),
        ({"length_penalty": 2.0, "use_beam_search": False}, "length_penalty"),
        ({"use_beam_search": 1}, "use_beam_search"),
        ({"n": 65}, "n"),
    ],
)
def test_what_cannot_be_had_is_refused(
    client: TestClient, pool: KnowingPool, wrong: dict[str, Any], param: str
) -> None:
    refused = client.post("/v1/completions", json={**BEAMS, **wrong})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert pool.requests == []


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "now"}}]}, "tools"),
        ({"thinking_token_budget": 1}, "thinking_token_budget"),
        ({"stream": True}, "stream"),
    ],
)
def test_chats_refuse_more(client: TestClient, wrong: dict[str, Any], param: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "use_beam_search": True, **wrong}
    refused = client.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    batch = client.post("/v1/chat/completions/batch", json={"messages": [body["messages"]], "use_beam_search": True})
    assert (batch.status_code, batch.json()["error"]["param"]) == (400, "use_beam_search")


def test_what_does_not_draw_is_taken(client: TestClient) -> None:
    plain = client.post("/v1/completions", json=BEAMS).json()
    drawn = {"temperature": 0.3, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 4, "length_penalty": 1.0, "stop": []}
    assert client.post("/v1/completions", json={**BEAMS, **drawn}).json()["choices"] == plain["choices"]


class WordFilter(ContentFilter):
    max_chars = 2

    def find(self, text: str, start: int) -> Found | None:
        place = text.find("bd", start)
        return None if place < 0 else Found(start=place, end=place + 2, kind="own")


def test_each_answer_passes_the_content_filter(pool: KnowingPool) -> None:
    filtering = Filtering(ContentConfig(), WordFilter())
    client = TestClient(create_app(replace(fake_context(pool=pool), filtering=filtering)))
    choices = client.post("/v1/completions", json=BEAMS).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["content_filter", "stop"]
    assert [choice["text"] for choice in choices] == ["", "bc"]


def test_an_error_of_the_engine_is_told(client: TestClient, pool: KnowingPool) -> None:
    pool.error = "no replica is ready to answer it"
    assert client.post("/v1/completions", json=BEAMS).status_code == 503


def test_a_key_pays_for_the_tokens_that_were_generated(pool: KnowingPool) -> None:
    keys = read_keys(AccessConfig(), {"RLSERVE_API_KEYS": f"{KEY} name=ci"})
    context = fake_context(pool=pool, keys=keys)
    gate = Gate(create_app(context), keys, context.metrics, checks_host=False, records=context.records)
    client = TestClient(gate, headers={"Authorization": f"Bearer {KEY}"})
    assert client.post("/v1/completions", json=BEAMS).status_code == 200
    usage = context.records.accounts.usage("ci")
    assert usage.num_generated_tokens == len(pool.requests)
    assert usage.num_prompt_tokens == 1


def test_a_client_that_leaves_has_its_beams_aborted(pool: KnowingPool) -> None:
    pool.hangs_at = 2

    async def leave() -> list[Message]:
        sent: list[Message] = []
        told = iter([{"type": "http.request", "body": json.dumps(BEAMS).encode()}])

        async def receive() -> Message:
            if (message := next(told, None)) is not None:
                return message
            while pool.num_opened < pool.hangs_at:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers}
        await create_app(fake_context(pool=pool))(scope, receive, send)
        return sent

    sent = asyncio.run(leave())
    assert sent[0]["status"] == 499
    assert pool.aborted == [request.id for request in pool.requests[1:]]
    assert len(pool.aborted) == 2
