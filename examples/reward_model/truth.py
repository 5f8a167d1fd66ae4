"""What the reward model stands in for, which a run with people's preferences does not have. It is only looked at."""

from __future__ import annotations

from typing import Any

from sorting import quality


def score(sample: Any) -> float:
    """The true quality of an answer; 0 where it does not end."""
    return quality(sample.prompt, sample.response) if sample.finished else 0.0
