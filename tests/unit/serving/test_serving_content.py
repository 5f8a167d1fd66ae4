"""What is taken out of prompts and answers: the same however a text is cut, and never told in part."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import VOCABULARY, FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.errors import ConfigurationError, UserError
from rlserve.serving.content.base import Found, Masker
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.content.factory import create_masking
from rlserve.serving.content.mask_stream import MaskStream
from rlserve.serving.content.masking import Masking
from rlserve.serving.front.app import create_app

CARD = re.compile(r"\b(?:\d[ -]?){12,15}\d\b|[a-z0-9]+@[a-z0-9.]+")
TEXT = st.text(st.sampled_from("ab1 2345678\n@.- AB")) | st.text()


class CardMasker(Masker):
    """Finds long numbers and e-mail addresses."""

    def find(self, text: str) -> Sequence[Found]:
        return [Found(start=match.start(), end=match.end(), kind="CARD") for match in CARD.finditer(text)]


class WordsMasker(Masker):
    """Finds every word of two letters or more, and overlaps."""

    def find(self, text: str) -> Sequence[Found]:
        whole = [Found(start=match.start(), end=match.end(), kind="WORD") for match in re.finditer(r"\w{2,}", text)]
        return [*whole, *(Found(start=each.start + 1, end=each.end, kind="REST") for each in whole)]


def masked(pieces: Sequence[str], masker: Masker | None = None) -> str:
    stream = MaskStream(masker or CardMasker(), lambda kind: None)
    return "".join(map(stream.push, pieces)) + stream.end()


@given(TEXT | TEXT.map(lambda text: text * 40), st.lists(st.integers(0, 3000)))
@pytest.mark.parametrize("masker", [CardMasker(), WordsMasker()])
def test_a_text_reads_the_same_however_it_comes(masker: Masker, text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    assert masked(pieces, masker) == masked([text], masker) == masked(list(text), masker)


@given(TEXT)
def test_what_has_nothing_to_hide_is_left_as_it_is(text: str) -> None:
    if CARD.search(text) is None:
        assert masked(list(text)) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pay 4111 1111 1111 1111 now", "pay [CARD] now"),
        ("x" * 600 + "@ab.cd.ef and more", None),
        ("mail a@b.cd\n", "mail [CARD]\n"),
        ("1" * 100 + " 4111 1111 1111 1111", None),
        ("word\n4111-1111-1111-1111", "word\n[CARD]"),
    ],
)
def test_no_part_is_told_before_the_rest(text: str, told: str | None) -> None:
    stream, so_far = MaskStream(CardMasker(), lambda kind: None), ""
    for character in text:
        so_far += stream.push(character)
        assert "4111" not in so_far
        assert "@" not in so_far
    assert told in (None, so_far + stream.end())


def test_a_word_is_told_as_soon_as_it_ends() -> None:
    stream = MaskStream(CardMasker(), lambda kind: None)
    assert [stream.push(piece) for piece in ("so", "me ", "12", " ", "34 ", "words ")] == [
        *("", "some ", "", "", "", "12 34 words "),
    ]


def client(pool: FakePool, **config: bool) -> TestClient:
    masking = Masking(ContentConfig(masker="test", **config), CardMasker())
    context = fake_context(pool=pool, masking=masking)
    context.metrics.register(masking)
    return TestClient(create_app(context))


ANSWER = "call 1234 5678 9012 3456 or 4111 1111 1111 1111."
PROMPT = "of 5500 0000 0000 0004"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_answers_are_masked(path: str, body: dict[str, object], stream: bool) -> None:
    pool = FakePool(ANSWER)
    asked = client(pool)
    answer = asked.post(path, json={**body, "stream": stream, "max_tokens": 50})
    assert answer.status_code == 200
    if stream:
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    else:
        (choice,) = answer.json()["choices"]
        text = choice.get("text") or choice["message"]["content"]
    assert text == "call [CARD] or [CARD]."
    read = VOCABULARY.decode(pool.requests[0].prompt_token_ids, skip_special_tokens=True)
    assert "5500" not in read
    metrics = asked.get("/metrics").text
    assert 'rlserve:masked_total{kind="CARD",source="answer"} 2.0' in metrics
    assert 'rlserve:masked_total{kind="CARD",source="prompt"} 1.0' in metrics
    assert "4111" not in metrics


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "logprobs": 1}, "logprobs"),
        ("/v1/completions", {"prompt": "a", "return_token_ids": True}, "return_token_ids"),
        ("/v1/completions", {"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": [5, 6]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True}, "logprobs"),
    ],
)
def test_what_would_tell_all_the_same_is_refused(path: str, body: dict[str, object], param: str) -> None:
    refused = client(FakePool()).post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_tgi_tells_each_token_and_is_refused() -> None:
    for path in ("/generate", "/generate_stream"):
        assert client(FakePool()).post(path, json={"inputs": "a"}).status_code == 422


def test_prompts_or_answers_may_be_left_alone() -> None:
    pool = FakePool(ANSWER)
    answer = client(pool, masks_answers=False).post("/v1/completions", json={"prompt": "a", "logprobs": 1})
    assert answer.json()["choices"][0]["text"] == ANSWER
    assert client(pool, masks_prompts=False).post("/v1/completions", json={"prompt": [5, 6]}).status_code == 200


@pytest.mark.parametrize("name", ["nobody", "rlserve.nothing.Here", "rlserve.serving.config.ContentConfig"])
def test_who_is_no_masker(name: str) -> None:
    with pytest.raises(UserError, match=r"content\.masker"):
        create_masking(ContentConfig(masker=name))


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is None, reason="needs rlserve[pii]")
def test_presidio_finds_what_the_page_says() -> None:
    from rlserve.serving.content.presidio import PresidioMasker

    text = (
        "Mail john.doe@example.com, ring +49 30 1234567 or 212-555-0123, card 4111 1111 1111 1111, "
        "from DE89 3704 0044 0532 0130 00 or GB82 WEST 1234 5698 7654 32, at 192.168.1.17 in 2026, 12 apples for 3.50"
    )
    masker = PresidioMasker(ContentConfig())
    told = masked([text], masker)
    assert told == masked(list(text), masker)
    for hidden in ("john", "1234567", "555", "4111", "3704", "WEST", "192.168"):
        assert hidden not in told
    for left in ("Mail ", "ring ", "in 2026, 12 apples for 3.50"):
        assert left in told


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is None, reason="needs rlserve[pii]")
def test_presidio_looks_for_what_it_is_told_to() -> None:
    from rlserve.serving.content.presidio import PresidioMasker

    def told(text: str, **options: Any) -> str:
        return masked([text], PresidioMasker(ContentConfig(masker="presidio", **options)))

    text = "a@example.com 192.168.1.17 PESEL 44051401359"
    assert told(text, mask_entities=("IP_ADDRESS",)) == "a@example.com [IP_ADDRESS] PESEL 44051401359"
    assert told(text, mask_languages=("pl",)) == "[EMAIL_ADDRESS] [IP_ADDRESS] PESEL [PL_PESEL]"
    assert told(text, mask_min_score=0.99, mask_entities=("IP_ADDRESS", "EMAIL_ADDRESS")).startswith(
        "[EMAIL_ADDRESS] 1"
    )
    for wrong in ({"mask_entities": ("PERSON",)}, {"mask_languages": ("xx",)}):
        with pytest.raises(UserError, match=r"content\.mask_"):
            told(text, **wrong)
    for wrong in ({"mask_entities": ("PERSON",)}, {"mask_min_score": 2}, {"max_prompt_chars": 0}):
        with pytest.raises(ConfigurationError):
            ContentConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a" * 101}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 101}]}),
        ("/v1/responses", {"input": "a" * 101}),
        ("/v1/messages", {"model": "fake", "max_tokens": 5, "messages": [{"role": "user", "content": "a" * 101}]}),
    ],
)
def test_a_prompt_that_would_take_long_to_mask_is_refused_first(path: str, body: dict[str, object]) -> None:
    config = ContentConfig(masker="test", max_prompt_chars=100)
    context = fake_context(masking=Masking(config, NeverMasker()))
    context = replace(context, config=replace(context.config, content=config))
    answer = TestClient(create_app(context)).post(path, json=body)
    assert answer.status_code == 413
    assert "content.max_prompt_chars" in answer.text


class NeverMasker(Masker):
    """Must not be asked."""

    def find(self, text: str) -> Sequence[Found]:
        raise AssertionError(text)
