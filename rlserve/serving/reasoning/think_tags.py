"""``<think>…</think>`` before the answer, as Qwen3, DeepSeek-R1 and others write it."""

from __future__ import annotations

from rlserve.serving.reasoning.base import ReasoningParser, Split

OPENING, CLOSING = "<think>", "</think>"


class ThinkTags(ReasoningParser):
    """Blanks around the reasoning, and before the answer behind it, belong to neither. An answer that does not begin
    with the opening tag has no reasoning.

    Args:
        begins_inside: the prompt ends with the opening tag: the template has written it.
    """

    def __init__(self, *, begins_inside: bool = False) -> None:
        self._held = ""
        self._take = self._begin_reasoning if begins_inside else self._look_for_opening

    def push(self, text: str) -> Split:
        self._held += text
        return self._take()

    def end(self) -> Split:
        rest, self._held = self._held, ""
        if self._take == self._look_for_opening:
            return Split(content=rest)
        return Split(reasoning=rest.rstrip()) if self._take == self._go_on_reasoning else Split()

    def _look_for_opening(self) -> Split:
        text = self._held.lstrip()
        if text.startswith(OPENING):
            self._held = text.removeprefix(OPENING)
            self._take = self._begin_reasoning
            return self._take()
        if OPENING.startswith(text):
            return Split()
        self._take = self._give_content
        return self._take()

    def _begin_reasoning(self) -> Split:
        self._held = self._held.lstrip()
        if not self._held:
            return Split()
        self._take = self._go_on_reasoning
        return self._take()

    def _go_on_reasoning(self) -> Split:
        reasoning, found, rest = self._held.partition(CLOSING)
        if found:
            self._held, self._take = rest, self._begin_content
            return Split(reasoning=reasoning.rstrip(), content=self._take().content)
        certain = len(self._held) - _num_possible(self._held, CLOSING)
        certain = len(self._held[:certain].rstrip())
        reasoning, self._held = self._held[:certain], self._held[certain:]
        return Split(reasoning=reasoning)

    def _begin_content(self) -> Split:
        self._held = self._held.lstrip()
        if not self._held:
            return Split()
        self._take = self._give_content
        return self._take()

    def _give_content(self) -> Split:
        content, self._held = self._held, ""
        return Split(content=content)


def _num_possible(text: str, tag: str) -> int:
    """Characters at the end of a text that a tag may begin with."""
    return next((length for length in range(min(len(tag), len(text)), 0, -1) if text.endswith(tag[:length])), 0)
