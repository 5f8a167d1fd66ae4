"""Log-probabilities of tokens that a request names, and of the whole vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_builders import VOCAB_SIZE, make_engine, make_request, run, save_model

from rlserve.engine.core.engine import Engine

PROMPT = (5, 6, 7, 8)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(save_model(tmp_path, "qwen3"))


def test_named_tokens_are_told_with_the_drawn_one_and_as_the_whole_vocabulary_has_them(engine: Engine) -> None:
    asked: dict[str, Any] = {"max_tokens": 6, "seed": 3, "ignore_eos": True}
    outputs = run(
        engine,
        [
            make_request("all", PROMPT, num_top_log_probs=VOCAB_SIZE, **asked),
            make_request("named", PROMPT, log_prob_token_ids=(9, 4), **asked),
            make_request("two", PROMPT, num_top_log_probs=2, **asked),
            make_request("none", PROMPT, **asked),
        ],
    )
    everything, named, two = (outputs[name].samples[0] for name in ("all", "named", "two"))
    assert everything.token_ids == named.token_ids == two.token_ids == outputs["none"].samples[0].token_ids
    for told, of_all, likeliest, drawn in zip(
        named.top_log_probs, everything.top_log_probs, two.top_log_probs, named.token_ids, strict=True
    ):
        assert [token for token, _ in told] == [9, 4, *([drawn] if drawn not in (9, 4) else [])]
        assert len(of_all) == VOCAB_SIZE
        assert dict(likeliest) == pytest.approx(dict(of_all[:2]))
        assert dict(told) == pytest.approx({token: dict(of_all)[token] for token, _ in told})
    assert outputs["none"].samples[0].top_log_probs == ()


def test_a_drawn_token_that_is_named_is_told_once(engine: Engine) -> None:
    request = make_request("0", PROMPT, max_tokens=2, allowed_token_ids=(4,), log_prob_token_ids=(9, 4))
    assert [[token for token, _ in told] for told in run(engine, [request])["0"].samples[0].top_log_probs] == [
        [9, 4]
    ] * 2


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"log_prob_token_ids": (VOCAB_SIZE,)}, f"log_prob_token_ids has {VOCAB_SIZE}, token ids are"),
        ({"log_prob_token_ids": (3, 3)}, "log_prob_token_ids must be at most 1024 tokens, each once"),
        ({"log_prob_token_ids": (3,), "num_top_log_probs": 1}, "num_top_log_probs must be 0 beside them"),
        ({"log_prob_token_ids": 3}, "log_prob_token_ids must be a tuple or a list, got int"),
    ],
)
def test_what_cannot_be_told_is_refused(engine: Engine, sampling: dict[str, Any], message: str) -> None:
    try:
        error = run(engine, [make_request("bad", PROMPT, **sampling)])["bad"].error
    except TypeError as raised:
        error = str(raised)
    assert message in (error or "")


def test_a_request_for_more_log_probabilities_than_fit_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlserve.engine.requests.validation.MAX_TOP_LOG_PROBS", 10)
    monkeypatch.setattr("rlserve.engine.requests.validation.MAX_LIKELY_TOKENS", 60)
    outputs = run(
        engine,
        [
            make_request("few", PROMPT, max_tokens=30, num_top_log_probs=10),
            make_request("short", PROMPT, max_tokens=3, num_top_log_probs=20, prompt_log_probs=15),
            make_request("long", PROMPT, max_tokens=4, num_top_log_probs=20),
            make_request("prompt", PROMPT, max_tokens=1, prompt_log_probs=16),
        ],
    )
    assert outputs["few"].error is None
    assert outputs["short"].error is None
    assert "num_top_log_probs of 20 for 4 tokens is 80 log-probabilities" in (outputs["long"].error or "")
    assert "prompt_log_probs of 16 for 4 tokens" in (outputs["prompt"].error or "")
