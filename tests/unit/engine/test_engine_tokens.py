"""Generated tokens as arrays: what they are equal to, and what comes out at the other side of a process border."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest

from rlserve.engine import GeneratedTokens, SampleOutput
from rlserve.engine.requests.generated_tokens import NO_TOKENS

TOKENS = GeneratedTokens.of([3, 2**31 - 1], [-0.1, -1e-30], [-2.5, 0.0], [7, 2**40])


@pytest.mark.parametrize("tokens", [TOKENS, NO_TOKENS])
def test_all_columns_cross_a_process_border_in_one_block(tokens: GeneratedTokens) -> None:
    block = pickle.dumps(tokens, protocol=5)
    assert block.count(b"numpy") == 0, "arrays of their own cost more than what is in them"
    found = pickle.loads(block)
    assert found == tokens
    for field in fields(GeneratedTokens):
        assert getattr(found, field.name).dtype == getattr(tokens, field.name).dtype


@pytest.mark.parametrize("column", [field.name for field in fields(GeneratedTokens)])
def test_tokens_are_equal_where_every_column_is(column: str) -> None:
    changed = getattr(TOKENS, column).copy()
    changed[1] = 0 if column != "behaviour_log_probs" else 1
    assert replace(TOKENS, **{column: getattr(TOKENS, column).copy()}) == TOKENS
    assert replace(TOKENS, **{column: changed}) != TOKENS
    assert hash(replace(TOKENS, **{column: getattr(TOKENS, column).copy()})) == hash(TOKENS)
    assert TOKENS != NO_TOKENS


def test_a_sample_tells_its_tokens_as_tuples_too() -> None:
    sample = SampleOutput(index=0, tokens=TOKENS)
    assert (sample.token_ids, sample.weight_versions) == ((3, 2**31 - 1), (7, 2**40))
    assert sample.log_probs == (float(np.float32(-0.1)), float(np.float32(-1e-30)))
    assert sample.behaviour_log_probs == (-2.5, 0.0)
    assert len(sample.tokens) == 2
