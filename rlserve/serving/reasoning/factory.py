"""Which parser splits off reasoning."""

from __future__ import annotations

from rlserve.serving.reasoning.base import ReasoningParser
from rlserve.serving.reasoning.think_tags import OPENING, ThinkTags

REASONING_FORMATS = ("think_tags",)


def create_reasoning_parser(name: str, prompt: str) -> ReasoningParser:
    """A parser for one answer.

    Args:
        name: of ``REASONING_FORMATS``.
        prompt: as the chat template has rendered it.
    """
    assert name in REASONING_FORMATS, name
    return ThinkTags(begins_inside=prompt.rstrip().endswith(OPENING))
