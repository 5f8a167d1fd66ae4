"""Ranges of the keys under ``rollout``."""

from __future__ import annotations

import pytest

from rlserve.errors import ConfigurationError
from rlserve.rollout.config import RolloutConfig


@pytest.mark.parametrize("top_k", [-1, 0, 1])
def test_all_tokens_are_asked_for_as_in_vllm_and_verl_too(top_k: int) -> None:
    assert RolloutConfig(top_k=top_k).top_k == top_k


def test_a_top_k_below_that_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"top_k: must be at least 0 \(0 and -1 take all\), got -2"):
        RolloutConfig(top_k=-2)
