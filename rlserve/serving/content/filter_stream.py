"""An answer up to what is refused in it, given out as it comes.

::

    ┌── told: context ──┬── certain: told now ──┬── held back ──┐
                        └── searched ───────────────────────────┘

What a filter may yet find begins among the last :meth:`ContentFilter.num_open` characters, which are held back. What it
finds at the very end is held back too, and decided with the next character: the word may go on.
"""

from __future__ import annotations

from rlserve.serving.content.base import ContentFilter, Found


class FilterStream:
    """
    Args:
        content_filter: looks at the text in windows.
    """

    def __init__(self, content_filter: ContentFilter) -> None:
        self._filter = content_filter
        self._text = ""
        self._num_told = 0
        """Characters at its beginning that are out: context."""
        self.refused: Found | None = None
        """What ended it. Nothing is told from then on."""

    def push(self, text: str) -> str:
        """What is certain with these characters."""
        self._text += text
        return self._tell(is_last=False)

    def end(self) -> str:
        """The rest."""
        return self._tell(is_last=True)

    def _tell(self, *, is_last: bool) -> str:
        if self.refused is not None:
            return ""
        size = len(self._text)
        found = self._filter.find(self._text, self._num_told)
        if found is not None and (is_last or found.end < size or size - found.start > self._filter.max_chars):
            self.refused = found
            return self._text[self._num_told : found.start]
        num_held = 0 if is_last else self._filter.num_open(self._text)
        end = size - num_held if found is None else min(size - num_held, found.start)
        end = max(end, self._num_told)
        told = self._text[self._num_told : end]
        num_dropped = max(end - self._filter.max_chars, 0)
        self._text, self._num_told = self._text[num_dropped:], end - num_dropped
        return told
