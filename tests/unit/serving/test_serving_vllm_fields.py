"""Parameters and answers that vLLM's clients and tests count on, beside OpenAI's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from serving_fakes import TEMPLATE, TOKENIZER, FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.serving.answers.message import call_deltas
from rlserve.serving.config import ServeConfig, ServedModelConfig
from rlserve.serving.front.app import create_app
from rlserve.serving.text.conversation import ConversationRenderer
from rlserve.serving.text.vocabulary import TokensByNumber
from rlserve.serving.tool_parsers.base import CallDelta

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def pool() -> FakePool:
    return FakePool("hello")


@pytest.fixture
def client(pool: FakePool) -> TestClient:
    return TestClient(create_app(fake_context(pool=pool)))


def test_what_is_not_asked_for_is_null_in_whole_answers(client: TestClient) -> None:
    completion = client.post("/v1/completions", json={"prompt": "ab"}).json()["choices"][0]
    assert {completion[name] for name in ("token_ids", "prompt_token_ids", "prompt_logprobs")} == {None}
    chat = client.post("/v1/chat/completions", json=CHAT).json()
    assert {chat["prompt_token_ids"], chat["prompt_logprobs"], chat["choices"][0]["token_ids"]} == {None}


@pytest.mark.parametrize(("side", "kept"), [("right", [7, 8]), ("left", [9, 10]), (None, [9, 10])])
def test_a_prompt_is_cut_on_the_side_that_is_named(client: TestClient, side: str | None, kept: list[int]) -> None:
    body = {"prompt": [7, 8, 9, 10], "truncate_prompt_tokens": 2, "truncation_side": side, "return_token_ids": True}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["prompt_token_ids"] == kept


@pytest.mark.parametrize("stream", [False, True])
def test_log_probs_name_tokens_by_number(client: TestClient, stream: bool) -> None:
    body = {"prompt": "ab", "logprobs": 1, "return_tokens_as_token_ids": True, "return_token_ids": True}
    answer = client.post("/v1/completions", json={**body, "stream": stream})
    if stream:
        assert '"token_id:' in answer.text
        return
    choice = answer.json()["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    body = {**CHAT, "logprobs": True, "return_tokens_as_token_ids": True, "return_token_ids": True}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert [token["token"] for token in choice["logprobs"]["content"]] == [f"token_id:{t}" for t in choice["token_ids"]]


def test_a_token_by_number_has_the_bytes_of_its_name() -> None:
    assert TokensByNumber().bytes_of(7) == b"token_id:7"


def test_roles_are_those_of_the_template(client: TestClient) -> None:
    for content in ("hi", [{"type": "text", "text": "hi"}]):
        body = {"messages": [{"role": "my-own", "content": content}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"seed": 2**63}, ("seed", "less_than_equal")),
        ({"seed": -(2**63) - 1}, ("seed", "greater_than_equal")),
        ({"logit_bias": {"bad1": 5.0, "bad2": 1.0, "3": 1.0}}, ("logit_bias", "bad1", "bad2")),
        ({"logit_bias": {"1": "much"}}, ("logit_bias",)),
        ({"logit_bias": {"99999": 1.0}}, ("logit_bias", "99999", "out of vocabulary")),
    ],
)
def test_what_is_wrong_is_told(client: TestClient, body: dict[str, Any], words: tuple[str, ...]) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, **body})
    assert answer.status_code == 400
    assert all(word in answer.json()["error"]["message"] for word in words), answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_told_behind_what_it_continues(client: TestClient, stream: bool) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": "oh "}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    answers = [
        client.post("/v1/chat/completions", json={**body, "echo": echo, "stream": stream}) for echo in (True, False)
    ]
    if stream:
        assert ['"content":"oh "' in answer.text for answer in answers] == [True, False]
    else:
        told = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
        assert told == ["oh hello", "hello"]


def test_only_the_words_of_an_assistant_are_echoed(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, "echo": True}).json()
    assert answer["choices"][0]["message"]["content"] == "hello"


def test_the_beginning_of_the_answer_may_be_left_out() -> None:
    template = TEMPLATE + "{% if add_generation_prompt %}assistant: {% endif %}"
    context = replace(fake_context(), renderer=ConversationRenderer(TOKENIZER, template, 5.0))
    client = TestClient(create_app(context))
    asked = {"messages": CHAT["messages"]}
    opened, bare = (
        client.post("/tokenize", json={**asked, "add_generation_prompt": opens}).json()["tokens"]
        for opens in (True, False)
    )
    assert opened[: len(bare)] == bare
    assert len(opened) > len(bare)


def test_a_conversation_that_goes_on_is_tokenised_without_its_end(client: TestClient) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": "oh"}]
    body = {
        "messages": messages,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "return_token_strs": True,
    }
    assert "".join(client.post("/tokenize", json=body).json()["token_strs"]).endswith("oh")


def test_reasoning_is_counted_and_may_be_left_out() -> None:
    model = ServedModelConfig(path="/models/fake", name="fake", reasoning_parser="think_tags")
    context = fake_context(pool=FakePool("<think>ab</think>cd"), config=ServeConfig(model=model))
    client = TestClient(create_app(context))
    for include in (True, False):
        answer = client.post("/v1/chat/completions", json={**CHAT, "include_reasoning": include}).json()
        message = answer["choices"][0]["message"]
        assert (message.get("reasoning"), message["content"]) == ("ab" if include else None, "cd")
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_load_and_tokenizer_are_told(client: TestClient) -> None:
    assert client.get("/load").json() == {"server_load": 0}
    info = client.get("/tokenizer_info").json()
    assert info["tokenizer_class"]
    assert all(abs(value) < 2**53 for value in info.values() if isinstance(value, int))
    assert isinstance(info["chat_template"], str)


def test_a_chunk_has_each_call_once() -> None:
    pieces = [
        CallDelta(index=0, id="a", name="now"),
        CallDelta(index=0, arguments='{"x'),
        CallDelta(index=0, arguments='": 1}'),
        CallDelta(index=1, id="b", name="later"),
    ]
    assert call_deltas(pieces) == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "now", "arguments": '{"x": 1}'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "later", "arguments": ""}},
    ]
    assert call_deltas(pieces[1:2]) == [{"index": 0, "function": {"arguments": '{"x'}}]


@pytest.mark.parametrize("stream", [False, True])
def test_times_to_the_first_token_count_all_requests(pool: FakePool, client: TestClient, stream: bool) -> None:
    pool.time_to_first_token_s = 0.5
    body = {"prompt": ["ab", "cd"], "stream": stream}
    assert client.post("/v1/completions", json=body).status_code == 200
    metrics = client.get("/metrics").text.splitlines()
    (count,) = (line for line in metrics if line.startswith("vllm:time_to_first_token_seconds_count"))
    (total,) = (line for line in metrics if line.startswith("vllm:time_to_first_token_seconds_sum"))
    assert float(count.split()[-1]) == 2
    if not stream:
        assert float(total.split()[-1]) >= 1
