"""The canary's prompts, and how far apart two scores of them are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.config import EngineConfig
from rlserve.errors import ConfigurationError
from rlserve.weights.canary import (
    EXACT_TOLERANCE,
    NUM_TOKENS,
    ROUNDED_TOLERANCE,
    batch_of,
    choose_prompts,
    difference,
    tolerance_of,
)
from rlserve.weights.config import CanaryConfig

PROMPTS = [tuple(range(start, start + length)) for start, length in ((100, 1), (200, 5), (300, 40))]


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(2, 40))
def test_prompts_are_made_of_the_data_alone_and_by_the_seed_alone(seed: int, number: int, max_model_len: int) -> None:
    chosen = choose_prompts(PROMPTS, num_prompts=number, max_model_len=max_model_len, seed=seed)
    assert chosen == choose_prompts(PROMPTS, num_prompts=number, max_model_len=max_model_len, seed=seed)
    assert [len(prompt) for prompt in chosen] == [min(NUM_TOKENS, max_model_len)] * number
    assert {token for prompt in chosen for token in prompt} <= {token for prompt in PROMPTS for token in prompt}


def test_another_seed_chooses_others_and_one_short_prompt_is_enough() -> None:
    made = {choose_prompts(PROMPTS, num_prompts=2, max_model_len=64, seed=seed) for seed in range(20)}
    assert len(made) > 1
    assert choose_prompts([(7,)], num_prompts=1, max_model_len=64, seed=0) == ((7,) * NUM_TOKENS,)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (((-1.0, -2.0), (-3.0,)), 0.0),
        (((-1.5, -2.0), (-3.0,)), 0.25),
        (((-1.5, -1.5), (-4.0,)), 1.0),
        (((-1.0, -2.0), (-11.0,)), 7.0),
        (((-1.0, -2.0), (math.nan,)), math.inf),
        (((-1.0, -math.inf), (-3.0,)), math.inf),
    ],
)
def test_the_prompt_that_differs_most_counts(found: Any, expected: float) -> None:
    assert difference(((-1.0, -2.0), (-3.0,)), found) == expected


@pytest.mark.parametrize(
    ("engine", "trainer_dtype", "expected"),
    [
        ({"dtype": "float32"}, "float32", EXACT_TOLERANCE),
        ({"dtype": "float32"}, "bfloat16", ROUNDED_TOLERANCE),
        ({"dtype": "bfloat16"}, "float32", ROUNDED_TOLERANCE),
        ({"dtype": "float32", "kv_cache_dtype": "int8"}, "float32", ROUNDED_TOLERANCE),
        ({"dtype": "float32", "weight_dtype": "int8"}, "float32", ROUNDED_TOLERANCE),
    ],
)
def test_who_rounds_may_differ_more(engine: Any, trainer_dtype: str, expected: float) -> None:
    assert tolerance_of(CanaryConfig(), EngineConfig(**engine), trainer_dtype) == expected
    assert tolerance_of(CanaryConfig(tolerance=0.5), EngineConfig(**engine), trainer_dtype) == 0.5


def test_tokens_that_nobody_draws_may_be_rounded_to_anything() -> None:
    assert difference(((-10.0, -25.0),), ((-12.5, -40.0),)) == 0.0


def test_a_trainer_scores_all_tokens_but_the_first() -> None:
    batch = batch_of(((1, 2, 3), (4, 5)))
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.prompt_lengths.tolist() == [1, 1]
    assert batch.response_lengths.tolist() == [2, 1]
    assert batch.tokens_of(np.array([0, 1])).tolist() == [0, 1, 2]


def test_some_versions_are_compared_or_none() -> None:
    assert [version for version in range(7) if CanaryConfig(every=3).is_due(version)] == [0, 3, 6]
    assert not CanaryConfig(num_prompts=0).is_due(0)
    with pytest.raises(ConfigurationError) as caught:
        CanaryConfig(num_prompts=-1, every=0, tolerance=0.0)
    assert [problem.key for problem in caught.value.problems] == ["num_prompts", "every", "tolerance"]
