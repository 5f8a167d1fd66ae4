"""A sample that has thought for as long as it may closes its reasoning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine import Engine, SamplingParams, ThinkingBudget
from rlserve.engine.requests.request import Request
from rlserve.engine.requests.structured_output import StructuredOutput

PROMPT = (5, 9, 9, 30, 61)
OPENING, CLOSING = 70, 71
NEVER_BY_ITSELF = {CLOSING: -100.0}


def budget(num_tokens: int, *, begins_inside: bool = False) -> ThinkingBudget:
    return ThinkingBudget(
        num_tokens=num_tokens, opening_token_id=OPENING, closing_token_id=CLOSING, begins_inside=begins_inside
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3", initializer_range=0.1)


@pytest.fixture
def engine(folder: Path) -> Engine:
    return make_engine(folder)


@BOTH_WAYS
@pytest.mark.parametrize("num_tokens", [0, 1, 5])
def test_reasoning_that_the_prompt_opens_is_closed_after_so_many_tokens(engine: Engine, num_tokens: int) -> None:
    prompt = (*PROMPT, OPENING)
    rules: dict[str, Any] = {"n": 3, "max_tokens": 12, "logit_bias": {**NEVER_BY_ITSELF, OPENING: -100.0}, "seed": 1}
    limited = make_request("limited", prompt, thinking_budget=budget(num_tokens, begins_inside=True), **rules)
    free = make_request("free", prompt, **rules)
    outputs = run(engine, [limited, free])
    assert all(CLOSING not in sample.token_ids for sample in outputs["free"].samples)
    for sample, other in zip(outputs["limited"].samples, outputs["free"].samples, strict=True):
        assert sample.token_ids[:num_tokens] == other.token_ids[:num_tokens]
        assert sample.token_ids.index(CLOSING) == num_tokens
        assert sample.token_ids.count(CLOSING) == 1
        assert sample.behaviour_log_probs[num_tokens] == 0
        assert sample.log_probs[num_tokens] < -1, "of the model itself, which would have said something else"


@BOTH_WAYS
def test_what_was_forbidden_closes_all_the_same(engine: Engine) -> None:
    allowed = tuple(range(20))
    request = make_request(
        "0", (*PROMPT, OPENING), max_tokens=8, allowed_token_ids=allowed, thinking_budget=budget(3, begins_inside=True)
    )
    (sample,) = run(engine, [request])["0"].samples
    assert sample.token_ids[3] == CLOSING
    assert {*sample.token_ids[:3], *sample.token_ids[4:]} <= set(allowed)


def test_an_opening_token_in_a_prompt_that_has_not_opened_it_counts_for_nothing(engine: Engine) -> None:
    request = make_request(
        "0",
        (OPENING, *PROMPT),
        max_tokens=8,
        logit_bias={**NEVER_BY_ITSELF, OPENING: -100.0},
        thinking_budget=budget(0),
    )
    (sample,) = run(engine, [request])["0"].samples
    assert CLOSING not in sample.token_ids


@BOTH_WAYS
def test_a_sample_that_goes_on_elsewhere_has_what_is_left(engine: Engine) -> None:
    request = make_request(
        "0",
        (*PROMPT, OPENING),
        max_tokens=20,
        seed=4,
        logit_bias=NEVER_BY_ITSELF,
        thinking_budget=budget(9, begins_inside=True),
    )
    expected = run(engine, [request])["0"].samples[0]
    engine.add(request)
    for _ in range(6):
        engine.step()
    (partial,) = engine.abort(["0"])
    resumed = run(engine, [replace(request, resumed=partial.samples)])["0"].samples[0]
    assert resumed.token_ids == expected.token_ids
    assert resumed.token_ids.index(CLOSING) == 9


@given(st.lists(st.sampled_from([1, 2, OPENING, CLOSING]), max_size=30), st.integers(0, 5), st.booleans())
def test_no_section_is_longer_than_the_budget(wanted: list[int], num_tokens: int, begins_inside: bool) -> None:
    """Whatever a model wants to say, section by section."""
    limit, prompt = budget(num_tokens, begins_inside=begins_inside), np.array([*PROMPT, OPENING], np.int32)
    said: list[int] = []
    for token in wanted:
        spent = limit.is_spent(prompt, np.array(said, np.int32))
        said.append(CLOSING if spent else token)
        assert not spent or num_tokens == 0 or said[-2] != CLOSING
    length = 0 if begins_inside else None
    for token in said:
        if token == CLOSING:
            length = None
        elif length is not None:
            length += 1
            assert length <= num_tokens
        elif token == OPENING:
            length = 0


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"thinking_budget": 5}, "thinking_budget must be a ThinkingBudget, got 5"),
        ({"thinking_budget": budget(-1)}, "thinking_budget must have a whole number of tokens, 0 at least, got -1"),
        (
            {"thinking_budget": replace(budget(1), closing_token_id=VOCAB_SIZE)},
            f"thinking_budget has {VOCAB_SIZE}",
        ),
        (
            {"thinking_budget": budget(1), "structured_output": StructuredOutput(kind="json_object")},
            "thinking_budget cannot be had beside a structured_output",
        ),
    ],
)
def test_a_budget_that_is_none_is_refused(engine: Engine, sampling: dict[str, Any], message: str) -> None:
    request = Request(id="bad", prompt_token_ids=PROMPT, sampling=SamplingParams(ignore_eos=False, **sampling))
    assert message in (run(engine, [request])["bad"].error or "")
