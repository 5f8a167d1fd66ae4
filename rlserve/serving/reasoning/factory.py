"""Which parser splits off reasoning."""

from __future__ import annotations

from rlserve.serving.reasoning.base import ReasoningParser
from rlserve.serving.reasoning.think_tags import CLOSING, OPENING, ThinkTags

REASONING_FORMATS = ("think_tags",)


def find_reasoning_format(configured: str, template: str) -> str | None:
    """The name of the format: the configured one, ``none``, or for ``auto`` the one that a chat template knows."""
    if configured == "auto":
        return "think_tags" if CLOSING in template else None
    return None if configured == "none" else configured


def reasoning_tags(name: str) -> tuple[str, str]:
    """What opens the reasoning and what closes it."""
    assert name in REASONING_FORMATS, name
    return OPENING, CLOSING


def create_reasoning_parser(name: str, prompt: str) -> ReasoningParser:
    """A parser for one answer.

    Args:
        name: of ``REASONING_FORMATS``.
        prompt: as the chat template has rendered it.
    """
    assert name in REASONING_FORMATS, name
    return ThinkTags(begins_inside=prompt.rstrip().endswith(OPENING))
