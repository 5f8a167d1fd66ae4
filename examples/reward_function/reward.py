"""A reward of one's own: a plain function that is given one answer and returns a number."""

from __future__ import annotations

from typing import Any


def score(sample: Any) -> float:
    """1 for the right sum, at most 0.5 for a wrong one: half the share of its digits that are right.

    ``sample`` has ``prompt``, ``response``, ``answer`` and ``row`` (the columns of the data), ``finished`` (False where
    the answer was cut off), and more: see the README. A dict with ``score`` may be returned too, or None.
    """
    final = sample.response.rsplit(";", maxsplit=1)[-1]
    if not sample.finished:
        return 0.0
    if final == sample.answer:
        return 1.0
    num_right = sum(ours == theirs for ours, theirs in zip(reversed(final), reversed(sample.answer), strict=False))
    return 0.5 * num_right / max(len(final), len(sample.answer))
