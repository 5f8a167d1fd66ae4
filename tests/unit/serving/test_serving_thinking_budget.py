"""How long an answer may think, as clients ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from serving_fakes import ALPHABET, CALLING, FakePool, calling_context, fake_context
from starlette.testclient import TestClient

from rlserve.engine import ThinkingBudget
from rlserve.serving.front.app import create_app
from rlserve.serving.text.conversation import ConversationRenderer
from rlserve.serving.text.vocabulary import Vocabulary
from rlserve.tasks.character_tokenizer import character_tokenizer

TALK = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"messages": TALK, "thinking_token_budget": 5}
MESSAGE: dict[str, Any] = {
    "model": "fake",
    "messages": TALK,
    "max_tokens": 2000,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
}


@pytest.fixture
def pool() -> FakePool:
    made = FakePool("hello")
    made.limits = replace(made.limits, max_model_len=4000)
    return made


def thinking_client(pool: FakePool, template: str = CALLING) -> TestClient:
    """Of a model whose tags are tokens of their own."""
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.add_tokens(["<think>", "</think>"])
    pool.limits = replace(pool.limits, vocab_size=len(tokenizer))
    renderer = ConversationRenderer(tokenizer, template, 5.0)
    context = replace(fake_context(pool=pool), vocabulary=Vocabulary(tokenizer), renderer=renderer)
    return TestClient(create_app(context))


def asked_of(pool: FakePool) -> ThinkingBudget | None:
    return pool.requests[-1].sampling.thinking_budget


@pytest.mark.parametrize(
    ("path", "body", "num_tokens"),
    [
        ("/v1/chat/completions", ASKED, 5),
        ("/v1/chat/completions", {**ASKED, "thinking_token_budget": 0}, 0),
        ("/v1/chat/completions/batch", {**ASKED, "messages": [TALK, TALK]}, 5),
        ("/v1/messages", MESSAGE, 1024),
    ],
)
@pytest.mark.parametrize("opens", [False, True])
def test_the_engine_is_told(pool: FakePool, path: str, body: dict[str, Any], num_tokens: int, opens: bool) -> None:
    client = thinking_client(pool, CALLING + ("<think>\n" if opens else ""))
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    first = len(ALPHABET) + 4
    assert asked_of(pool) == ThinkingBudget(
        num_tokens=num_tokens, opening_token_id=first, closing_token_id=first + 1, begins_inside=opens
    )


@pytest.mark.parametrize(
    "body",
    [{**ASKED, "thinking_token_budget": None}, {**ASKED, "response_format": {"type": "json_object"}}],
    ids=["not asked for", "an answer that does not think"],
)
def test_there_is_none(pool: FakePool, body: dict[str, Any]) -> None:
    assert thinking_client(pool).post("/v1/chat/completions", json=body).status_code == 200
    assert asked_of(pool) is None


@pytest.mark.parametrize(
    ("context", "hint"),
    [(fake_context, "no reasoning of this model is known"), (calling_context, "are no tokens of their own")],
)
def test_what_cannot_be_held_to_is_refused_or_for_messages_left_out(pool: FakePool, context: Any, hint: str) -> None:
    client = TestClient(create_app(context(pool=pool)))
    refused = client.post("/v1/chat/completions", json=ASKED)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "thinking_token_budget")
    assert hint in refused.json()["error"]["message"]
    assert client.post("/v1/messages", json=MESSAGE).status_code == 200
    assert asked_of(pool) is None


@pytest.mark.parametrize("wrong", [-1, 2**31, 1.5, True, "5"])
def test_what_is_no_number_of_tokens_is_refused(pool: FakePool, wrong: Any) -> None:
    refused = thinking_client(pool).post("/v1/chat/completions", json={**ASKED, "thinking_token_budget": wrong})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "thinking_token_budget")
