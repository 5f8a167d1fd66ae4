"""The reward: 1 for the right product, else 0."""

from __future__ import annotations

from typing import Any


def score(sample: Any) -> float:
    """With a tool, the answer is what the model said in its last turn; without, all that it said."""
    answer = sample.turns[-1] if sample.turns else sample.response
    return float(sample.finished and answer == sample.answer)
