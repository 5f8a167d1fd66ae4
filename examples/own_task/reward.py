"""The reward: 1 for the digits in rising order, else 0."""

from __future__ import annotations

from typing import Any


def score(sample: Any) -> float:
    """``sample`` has ``prompt``, ``response``, ``answer``, ``finished`` and more: the table is in the README."""
    return float(sample.finished and sample.response == sample.answer)
