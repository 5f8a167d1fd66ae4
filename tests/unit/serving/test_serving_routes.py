"""What clients get, with an engine that writes the same text for all."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from serving_fakes import VOCABULARY, FakePool, fake_context, generated
from starlette.testclient import TestClient
from starlette.types import Message

from rlserve.engine.requests.delta import SampleDelta
from rlserve.engine.requests.request import FinishReason
from rlserve.serving.answers.tgi_answers import TgiAnswer
from rlserve.serving.config import DegradationConfig, LimitsConfig, ServeConfig, ServedModelConfig
from rlserve.serving.front import event_stream
from rlserve.serving.front.app import create_app
from rlserve.serving.front.context import ServerContext
from rlserve.serving.front.event_stream import EventStream

CONFIG = ServeConfig(model=ServedModelConfig(path="/models/fake", name="fake"))
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def pool() -> FakePool:
    return FakePool("hello")


@pytest.fixture
def context(pool: FakePool) -> ServerContext:
    return fake_context(pool=pool)


@pytest.fixture
def client(context: ServerContext) -> TestClient:
    return TestClient(create_app(context))


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """Of a stream that came to its end."""
    parts = answer.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def test_a_completion(client: TestClient, pool: FakePool) -> None:
    answer = client.post("/v1/completions", json={"prompt": ["ab", "cde"], "n": 2, "max_tokens": 9, "seed": 5}).json()
    assert (answer["object"], answer["model"]) == ("text_completion", "fake")
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(i, "hello") for i in range(4)]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 20,
        "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert [request.sampling.seed for request in pool.requests] == [5, 5]
    assert [request.sampling.max_tokens for request in pool.requests] == [9, 9]


def test_requests_that_clients_name_alike_stay_apart(client: TestClient, pool: FakePool) -> None:
    for path in ("/v1/completions", "/v1/completions", "/v1/chat/completions", "/generate"):
        body = {"prompt": "ab"} if path == "/v1/completions" else CHAT if "chat" in path else {"inputs": "ab"}
        assert client.post(path, json=body, headers={"X-Request-Id": "mine"}).status_code == 200
    assert len({request.id for request in pool.requests}) == 4


def test_a_streamed_completion_ends_with_its_usage(client: TestClient) -> None:
    asked = {"prompt": "ab", "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post("/v1/completions", json=asked))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)


def test_usage_may_be_in_every_chunk(client: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(client.post("/v1/completions", json={"prompt": "ab", "stream": True, "stream_options": options}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 5


def test_a_stream_without_options_has_no_usage(client: TestClient) -> None:
    chunks = events(client.post("/v1/completions", json={"prompt": "ab", "stream": True}))
    assert not any("usage" in chunk for chunk in chunks)


def test_a_chat(client: TestClient, pool: FakePool) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, "logprobs": True, "return_token_ids": True}).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert [token["token"] for token in choice["logprobs"]["content"]] == list("hello")
    assert choice["logprobs"]["content"][0]["bytes"] == list(b"h")
    assert VOCABULARY.decode(choice["token_ids"], skip_special_tokens=True) == "hello"
    assert VOCABULARY.decode(answer["prompt_token_ids"], skip_special_tokens=True) == "user: hi "
    assert pool.requests[0].sampling.max_tokens == 100 - len("user: hi ")


def test_a_streamed_chat_begins_with_who_speaks(client: TestClient) -> None:
    chunks = events(client.post("/v1/chat/completions", json={**CHAT, "stream": True, "n": 2}))
    assert [chunk["choices"][0]["delta"]["role"] for chunk in chunks[:2]] == ["assistant"] * 2
    for index in range(2):
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(delta.get("content", "") for delta in deltas) == "hello"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_parts_of_a_message_are_its_text(client: TestClient, pool: FakePool) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    assert client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    prompt = VOCABULARY.decode(pool.requests[0].prompt_token_ids, skip_special_tokens=True)
    assert prompt == "system: x user: ab "


@pytest.mark.parametrize(
    ("path", "extra", "param", "status"),
    [
        ("/v1/chat/completions", {"tools": [{"type": "function"}]}, "tools", 400),
        ("/v1/chat/completions", {"tool_choice": "required"}, "tool_choice", 400),
        ("/v1/chat/completions", {"guided_regex": "a"}, "guided_regex", 400),
        ("/v1/chat/completions", {"top_logprobs": 3}, "top_logprobs", 400),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 99}, "top_logprobs", 400),
        ("/v1/chat/completions", {"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", 400),
        ("/v1/chat/completions", {"chat_template": "{{ 1 }}"}, "chat_template", 400),
        ("/v1/chat/completions", {"reasoning_effort": "high"}, "reasoning_effort", 400),
        ("/v1/chat/completions", {"messages": []}, "messages", 400),
        ("/v1/chat/completions", {"store": True}, "store", 400),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "echo", 400),
        ("/v1/completions", {"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", 400),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, "max_tokens", 400),
        ("/v1/completions", {"prompt": ""}, "prompt", 400),
        ("/v1/completions", {"prompt": "a" * 100}, "prompt", 400),
        ("/v1/completions", {"prompt": ["a"] * 2000}, "prompt", 400),
        ("/v1/completions", {"prompt": "a", "stop_token_ids": [1] * 300}, "stop_token_ids", 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 100}]}, "messages", 400),
        ("/v1/chat/completions", {"max_completion_tokens": 1000}, "max_completion_tokens", 400),
        ("/v1/chat/completions", {"max_completion_tokens": 0}, "max_completion_tokens", 400),
    ],
)
def test_what_cannot_be_had_names_its_parameter(
    client: TestClient, path: str, extra: dict[str, Any], param: str, status: int
) -> None:
    body = {**(CHAT if "chat" in path else {}), **extra}
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_without_a_template_there_is_no_chat() -> None:
    context = fake_context()
    context = replace(context, renderer=type(context.renderer)(VOCABULARY._tokenizer, None, 1.0))
    answer = TestClient(create_app(context)).post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert "model.chat_template" in answer.json()["error"]["message"]


def test_load_shortens_answers_and_then_refuses(client: TestClient, pool: FakePool, context: ServerContext) -> None:
    asked = {"prompt": "a", "max_tokens": 50, "min_tokens": 40}
    config = DegradationConfig(shorten_at=1.0, refuse_at=2.0, shortened_max_tokens=7, retry_after_s=9)
    context = replace(context, config=replace(CONFIG, degradation=config))
    client = TestClient(create_app(context))
    pool.num_live_samples = 8
    assert client.post("/v1/completions", json=asked).status_code == 200
    assert (pool.requests[-1].sampling.max_tokens, pool.requests[-1].sampling.min_tokens) == (7, 7)
    pool.num_live_samples = 16
    refused = client.post("/v1/completions", json=asked)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "9")
    assert 'vllm:admission_rejections_total{model_name="fake",reason="load"} 1.0' in client.get("/metrics").text


def test_the_number_of_answers_is_limited(client: TestClient, pool: FakePool) -> None:
    pool.num_live_samples = LimitsConfig().max_live_samples
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 503


def test_who_ends_is_first_not_ready_and_then_refuses(client: TestClient, context: ServerContext) -> None:
    assert client.get("/ready").status_code == 200
    context.draining.is_ready = False
    assert client.get("/ready").status_code == 503
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
    context.draining.takes_requests = False
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 503
    assert client.get("/health").status_code == 200


def test_health_is_that_of_the_replicas(client: TestClient, pool: FakePool) -> None:
    assert client.get("/health?generate=1").status_code == 200
    assert pool.requests[0].sampling.max_tokens == 1
    assert client.get("/health?generate=maybe").json()["error"]["param"] == "generate"
    pool.num_ready = 0
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503


async def leave_after_the_first_event(
    context: ServerContext, pool: FakePool, path: str, body: dict[str, Any]
) -> list[Message]:
    """Ask, and leave when something has come or, for a whole answer, when it has begun."""
    sent: list[Message] = []
    has_body = False
    begun = asyncio.Event()

    async def receive() -> Message:
        nonlocal has_body
        if not has_body:
            has_body = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await (begun if body["stream"] else pool.opened).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message.get("body"):
            begun.set()

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await create_app(context)(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_whoever_leaves_has_everything_aborted(context: ServerContext, pool: FakePool, path: str, stream: bool) -> None:
    pool.hangs = True
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": ["a", "b"]},
        "/v1/responses": {"input": "a"},
        "/v1/messages": {**CHAT, "model": "fake", "max_tokens": 50},
    }
    body = {**bodies.get(path, CHAT), "stream": stream}
    asyncio.run(leave_after_the_first_event(context, pool, path, body))
    assert sorted(pool.aborted) == sorted(request.id for request in pool.requests)
    assert pool.requests


def test_a_client_that_takes_nothing_is_given_up() -> None:
    closed = []

    async def content() -> Any:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            closed.append(True)

    async def receive() -> Message:
        await asyncio.sleep(3600)
        return {}

    async def send(message: Message) -> None:
        if message.get("more_body"):
            await asyncio.sleep(3600)

    asyncio.run(EventStream(content(), 0.05)({"type": "http"}, receive, send))
    assert closed == [True]


def test_a_quiet_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "_KEEP_ALIVE_S", 0.02)
    sent: list[bytes] = []
    kept = asyncio.Event()

    async def content() -> Any:
        await kept.wait()
        yield b"data: x\n\n"

    async def receive() -> Message:
        await asyncio.sleep(3600)
        return {}

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if message.get("body", b"").startswith(b":"):
            kept.set()

    asyncio.run(EventStream(content(), 60.0)({"type": "http"}, receive, send))
    assert b": keep-alive\n\n" in sent
    assert sent[-2:] == [b"data: x\n\n", b""]


def test_the_next_event_is_made_when_the_one_before_is_taken() -> None:
    made, taken = [], []

    async def content() -> Any:
        for number in range(50):
            made.append(number)
            yield b"data: x\n\n"

    async def receive() -> Message:
        await asyncio.sleep(3600)
        return {}

    async def send(message: Message) -> None:
        if message.get("body"):
            await asyncio.sleep(0)
            taken.append(message)
            assert len(made) == len(taken)

    asyncio.run(EventStream(content(), 60.0)({"type": "http"}, receive, send))
    assert len(taken) == 50


def test_generate_as_tgi_has_it(client: TestClient, pool: FakePool) -> None:
    assert client.post("/generate", json={"inputs": "ab"}).json() == {"generated_text": "hello"}
    assert pool.requests[0].sampling.temperature == 0
    parameters = {"max_new_tokens": 5, "do_sample": True, "seed": 3, "details": True, "return_full_text": True}
    answer = client.post("/generate", json={"inputs": "ab", "parameters": parameters}).json()
    assert answer["generated_text"] == "abhello"
    details = answer["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 5, 3)
    assert [token["text"] for token in details["tokens"]] == list("hello")
    assert pool.requests[1].sampling.temperature == 1
    assert client.get("/info").json()["max_total_tokens"] == 100


def test_generate_stream_as_tgi_has_it(client: TestClient) -> None:
    lines = client.post("/generate_stream", json={"inputs": "ab"}).text.split("\n\n")
    found = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert [each["index"] for each in found] == [1, 2, 3, 4, 5]
    assert "".join(each["token"]["text"] for each in found) == "hello"
    assert [each["generated_text"] for each in found] == [None] * 4 + ["hello"]
    assert found[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 5,
        "seed": None,
        "input_length": 2,
    }


def test_an_end_without_a_token_is_told_too() -> None:
    answer = TgiAnswer(VOCABULARY, (4, 5), frozenset(), None)
    (letter,) = VOCABULARY.encode("h", add_special_tokens=False)
    assert [each["text"] for each in answer.take(SampleDelta(index=0, start=0, tokens=generated([letter])))] == ["h"]
    end = SampleDelta(index=0, start=1, tokens=generated([]), finish_reason=FinishReason.LENGTH)
    (token,) = answer.take(end)
    assert (token["text"], token["special"]) == ("", True)
    assert (answer.text, answer.details(end)["generated_tokens"]) == ("h", 1)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ""},
        {"inputs": 3},
        {"inputs": "a", "parameters": {"temperature": 0.0}},
        {"inputs": "a", "parameters": {"watermark": True}},
        {"inputs": "a", "parameters": {"stop": ["x"] * 99}},
        {"inputs": "a", "parameters": {"max_new_tokens": 1000}},
    ],
)
def test_tgi_errors_are_its_own(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/generate", json=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error_type"] == "validation"
    assert isinstance(answer.json()["error"], str)
