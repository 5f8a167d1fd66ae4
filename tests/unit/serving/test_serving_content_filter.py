"""What is refused for its text: the same however it comes, never told in part, in the words of each API."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import CALLING, TOKENIZER, VOCABULARY, FakePool, fake_context, fake_talker, generated
from starlette.testclient import TestClient

from rlserve.engine.requests.delta import RequestDelta, SampleDelta
from rlserve.engine.requests.request import FinishReason, RequestOutput
from rlserve.errors import ConfigurationError, UserError
from rlserve.serving.accounting import Accounts
from rlserve.serving.audit import open_audit_log
from rlserve.serving.config import AccountingConfig, AuditConfig
from rlserve.serving.content.base import ContentFilter, Found
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.content.deny_list import MAX_FILE_BYTES, read_deny_list
from rlserve.serving.content.factory import create_filtering
from rlserve.serving.content.filter_stream import FilterStream
from rlserve.serving.content.filtering import Filtering
from rlserve.serving.front.app import create_app
from rlserve.serving.front.gate import Gate
from rlserve.serving.keys import Keys
from rlserve.serving.records import Records
from rlserve.serving.replicas.live_request import LiveRequest
from rlserve.serving.text.conversation import ConversationRenderer

RULES = r"""
# of the team
pipe bomb
[names]
Straße
/falcon-\d{1,3}\b/
炸弹
c++
"""
ANSWER = "how to make a pipe bomb at home"


class WordFilter(ContentFilter):
    """A user's own: finds one word wherever it stands."""

    max_chars = 6

    def find(self, text: str, start: int) -> Found | None:
        place = text.find("secret", start)
        return None if place < 0 else Found(start=place, end=place + 6, kind="own")


def deny_list(folder: Path, rules: str = RULES) -> ContentFilter:
    file = folder / "deny.txt"
    file.write_text(rules, encoding="utf-8")
    return read_deny_list(str(file))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> ContentFilter:
    return deny_list(tmp_path_factory.mktemp("rules"))


def told(content_filter: ContentFilter, pieces: Sequence[str]) -> tuple[str, Found | None]:
    stream = FilterStream(content_filter)
    text = "".join(map(stream.push, pieces)) + stream.end()
    return text, stream.refused


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a PIPE  bomb.", "deny_list"),
        ("pipe\nbomb", "deny_list"),
        ("pipe bombs", None),
        ("apipe bomb", None),
        ("pipe     bomb", None),
        ("die STRAßE", "names"),
        ("straßen", None),
        ("project Falcon-12!", "names"),
        ("falcon-1234", None),
        ("做炸弹的", "names"),
        ("obj-c++17", "names"),
        ("épipe bomb", None),
        ("\ud800 pipe bomb", "deny_list"),
    ],
)
def test_what_a_deny_list_finds(rules: ContentFilter, text: str, kind: str | None) -> None:
    found = rules.find(text, 0)
    assert (None if found is None else found.kind) == kind
    assert (told(rules, list(text))[1] is None) == (kind is None)


WORDS = st.lists(
    st.sampled_from(["pipe", "bomb", "pi", " ", "  ", "falcon", "-", "12", "34", "s", "c+", "+", "x", "é"])
)


@given(WORDS.map("".join), st.lists(st.integers(0, 200)))
def test_it_is_the_same_however_a_text_comes_and_no_part_is_told(
    rules: ContentFilter, text: str, cuts: list[int]
) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    found = rules.find(text, 0)
    for each in (pieces, [text], list(text)):
        out, refused = told(rules, each)
        assert (refused is None) == (found is None)
        assert out == text if found is None else text[: found.start].startswith(out) or out == text[: found.start]


@given(st.text(st.sampled_from("secrt ")))
def test_a_window_is_enough_for_a_filter_of_ones_own(text: str) -> None:
    text = text * 20
    out, refused = told(WordFilter(), list(text))
    assert out == text.partition("secret")[0]
    assert (refused is None) == ("secret" not in text)


def test_only_what_may_become_a_phrase_is_held_back(tmp_path: Path) -> None:
    stream = FilterStream(deny_list(tmp_path, "pipe bomb"))
    assert [stream.push(piece) for piece in ("I smoke", " a pi", "pe ", "bo", "wl")] == [
        "I smoke",
        " a",
        "",
        "",
        " pipe bowl",
    ]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("/a.*b/", "repetitions a bound"),
        ("/(a/", "no regular expression"),
        (r"/(a)\1/", "RE2"),
        ("/a{0,3}/", "empty text"),
        ("# nothing", "no rule"),
        ("x" * 300, "too long"),
        ("x\n" * MAX_FILE_BYTES, "bytes"),
        ("\n".join(f"[kind {number}]\nword{number}" for number in range(65)), "kinds"),
    ],
)
def test_rules_that_cannot_be(tmp_path: Path, rules: str, reason: str) -> None:
    with pytest.raises(UserError, match=r"content\.deny_list.*" + reason):
        deny_list(tmp_path, rules)


def test_filters_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        create_filtering(ContentConfig(filter="deny_list", deny_list=str(tmp_path / "none")))
    for name in ("nobody", "rlserve.serving.config:ContentConfig", "rlserve.nothing:Here"):
        with pytest.raises(UserError, match=r"content\.filter"):
            create_filtering(ContentConfig(filter=name))
    for wrong in ({"filter": "deny_list"}, {"deny_list": "x"}):
        with pytest.raises(ConfigurationError, match="deny_list"):
            ContentConfig(**wrong)
    assert create_filtering(ContentConfig()) is None


def test_many_hard_rules_are_searched_in_linear_time(tmp_path: Path) -> None:
    """Backtracking would take longer than the universe."""
    found = deny_list(tmp_path, "/(a?){0,30}a{30}c/").find("a" * 100_000, 0)
    assert found is None


PROMPTS: list[tuple[str, Any, str]] = [
    ("/v1/completions", lambda text: {"prompt": text}, "prompt"),
    ("/v1/completions", lambda text: {"prompt": VOCABULARY.encode(text, add_special_tokens=False)}, "prompt"),
    ("/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]}, "messages"),
    ("/v1/responses", lambda text: {"input": text}, "input"),
    (
        "/v1/messages",
        lambda text: {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 50},
        "messages",
    ),
    ("/generate", lambda text: {"inputs": text}, "inputs"),
    ("/generate_stream", lambda text: {"inputs": text}, "inputs"),
]


def client(pool: FakePool, content_filter: ContentFilter, **config: bool) -> TestClient:
    filtering = Filtering(ContentConfig(filter="test", **config), content_filter)
    context = replace(fake_context(pool=pool), filtering=filtering)
    context.metrics.register(filtering)
    return TestClient(create_app(context))


@pytest.mark.parametrize(("path", "body", "param"), PROMPTS)
def test_a_prompt_is_refused_before_anything_is_generated(
    rules: ContentFilter, path: str, body: Any, param: str
) -> None:
    pool = fake_talker()
    asked = client(pool, rules)
    refused = asked.post(path, json=body("a pipe bomb"))
    assert refused.status_code == 400
    assert "bomb" not in refused.text
    if path.startswith("/generate"):
        assert refused.json()["error_type"] == "validation"
    elif path == "/v1/messages":
        assert refused.json()["error"]["type"] == "invalid_request_error"
    else:
        assert refused.json()["error"]["code"] == "content_filter"
        assert refused.json()["error"]["param"] == param
    assert pool.requests == []
    metrics = asked.get("/metrics").text
    assert 'rlserve:refused_total{kind="deny_list",source="prompt"} 1.0' in metrics
    assert asked.post(path, json=body("a pipe")).status_code == 200
    assert client(pool, rules, filters_prompts=False).post(path, json=body("a pipe bomb")).status_code == 200


def talker() -> FakePool:
    pool = fake_talker()
    pool.text = ANSWER
    return pool


def end_of(path: str, answer: dict[str, Any]) -> tuple[str, str]:
    """The text of a whole answer, and how it ended."""
    match path:
        case "/v1/completions":
            return answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]
        case "/v1/chat/completions":
            return answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]
        case "/v1/responses":
            assert answer["status"] == "incomplete"
            return answer["output"][0]["content"][0]["text"], answer["incomplete_details"]["reason"]
    assert path == "/v1/messages"
    return answer["content"][0]["text"], answer["stop_reason"]


@pytest.mark.parametrize(("path", "body", "param"), PROMPTS[:1] + PROMPTS[2:5])
def test_an_answer_ends_before_what_it_is_refused_for(rules: ContentFilter, path: str, body: Any, param: str) -> None:
    pool = talker()
    asked = client(pool, rules)
    answer = asked.post(path, json=body("how"))
    end = "refusal" if path == "/v1/messages" else "content_filter"
    assert (answer.status_code, *end_of(path, answer.json())) == (200, "how to make a", end)
    assert pool.aborted == [pool.requests[0].id]
    streamed = asked.post(path, json={**body("how"), "stream": True}).text
    assert "pipe" not in streamed
    assert " make" in streamed.replace('"}', "").replace("\n", "") or " make" in texts_of(streamed)
    assert end in streamed
    assert len(pool.aborted) == 2
    assert 'rlserve:refused_total{kind="deny_list",source="answer"} 2.0' in asked.get("/metrics").text
    unfiltered = client(talker(), rules, filters_answers=False).post(path, json=body("how"))
    assert "pipe bomb" in unfiltered.text


def texts_of(stream: str) -> str:
    found = re.findall(r'"(?:text|content|delta)":"([^"]*)"', stream)
    return "".join(found)


def test_tgi_has_no_such_end_so_it_is_an_error(rules: ContentFilter) -> None:
    pool = talker()
    asked = client(pool, rules)
    answer = asked.post("/generate", json={"inputs": "how"})
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
    stream = asked.post("/generate_stream", json={"inputs": "how"}).text
    lines = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
    assert "".join(line["token"]["text"] for line in lines[:-1]) == "how to make a"
    assert lines[-1]["error_type"] == "generation"
    assert len(pool.aborted) == 2
    pool.text = "a pipe"
    stream = asked.post("/generate_stream", json={"inputs": "how"}).text
    lines = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
    assert lines[-1]["generated_text"] == "".join(line["token"]["text"] for line in lines) == "a pipe"


def test_tokens_are_told_of_whole_answers_that_pass(rules: ContentFilter) -> None:
    pool = talker()
    asked = client(pool, rules)
    wanted = {"prompt": "a", "logprobs": 1, "return_token_ids": True}
    (choice,) = asked.post("/v1/completions", json=wanted).json()["choices"]
    assert (choice["text"], choice["token_ids"], choice["logprobs"]["tokens"]) == ("how to make a", [], [])
    pool.text = "hello"
    (choice,) = asked.post("/v1/completions", json=wanted).json()["choices"]
    assert choice["logprobs"]["tokens"] == list("hello")
    refused = asked.post("/v1/completions", json={**wanted, "stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
    told_of = {"input": "a", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    assert asked.post("/v1/responses", json=told_of).json()["output"][0]["content"][0]["logprobs"] != []
    pool.text = ANSWER
    assert "pipe" not in asked.post("/v1/responses", json=told_of).text


class TwoMinds(FakePool):
    """The second answer to each prompt is harmless, and longer."""

    async def _write(self, lives: Sequence[LiveRequest], changed: asyncio.Event) -> None:
        texts = [VOCABULARY.encode(text, add_special_tokens=False) for text in (ANSWER, "b" * 60)]
        for start in range(60):
            for live in lives:
                samples = tuple(
                    SampleDelta(
                        index=index,
                        start=start,
                        tokens=generated([tokens[start]]),
                        finish_reason=FinishReason.STOP if start == len(tokens) - 1 else None,
                    )
                    for index, tokens in enumerate(texts)
                    if start < len(tokens)
                )
                output = RequestOutput(request_id=live.request.id, samples=()) if start == 59 else None
                live.take(RequestDelta(request_id=live.request.id, samples=samples, output=output))
            while changed.is_set():
                await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
def test_others_of_a_request_go_on_where_one_is_refused(rules: ContentFilter, stream: bool) -> None:
    pool = TwoMinds()
    answer = client(pool, rules).post("/v1/completions", json={"prompt": ["a", "b"], "n": 2, "stream": stream})
    texts, ends = [""] * 4, [""] * 4
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
    for choice in (choice for line in lines for choice in json.loads(line)["choices"]):
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert texts == ["how to make a", "b" * 60] * 2
    assert ends == ["content_filter", "stop"] * 2
    assert pool.aborted == []


def test_calls_of_tools_are_text_like_any_other(rules: ContentFilter) -> None:
    pool = talker()
    pool.text = '<tool_call>{"name": "now", "arguments": {"a": "pipe bomb"}}</tool_call>'
    context = fake_context(pool=pool)
    filtering = Filtering(ContentConfig(filter="test"), rules)
    context = replace(context, filtering=filtering, renderer=ConversationRenderer(TOKENIZER, CALLING, 5.0))
    tools = [{"type": "function", "function": {"name": "now"}}]
    body = {"messages": [{"role": "user", "content": "a"}], "tools": tools}
    answer = TestClient(create_app(context)).post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
    assert "bomb" not in answer.text


def test_the_audit_log_says_what_was_refused(rules: ContentFilter, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    filtering = Filtering(ContentConfig(filter="test"), rules)
    with open_audit_log(AuditConfig(path=str(path))) as audit:
        records = Records(accounts=Accounts(AccountingConfig(), {}), audit=audit)
        context = replace(fake_context(pool=talker(), records=records), filtering=filtering)
        gate = Gate(create_app(context), Keys(()), context.metrics, checks_host=False, records=records)
        for prompt in ("pipe bomb", "a"):
            TestClient(gate).post("/v1/completions", json={"prompt": prompt})
    lines = [json.loads(line)["refused"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"source": "prompt", "kind": "deny_list"}, {"source": "answer", "kind": "deny_list"}]
    assert "bomb" not in path.read_text(encoding="utf-8")
