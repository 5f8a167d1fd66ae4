"""A text without what is not to be told of it, given out as it comes.

A text is cut into pieces of which each is searched by itself: a word, or several words between which there is one space
and which look like groups of a number (``4111 1111 1111 1111``, ``GB82 WEST 1234``). Where the cuts are depends on the
characters alone, so the text reads the same in whatever pieces it came. A piece is held back until it has ended. One
that does not end is searched when it has ``_MAX_CHARS``; its last ``_MAX_FOUND_CHARS`` stay, so that nothing up to that
length is told in part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from rlserve.serving.content.base import Found, Masker

_MAX_CHARS = 512
_MAX_FOUND_CHARS = 256
_GROUP = re.compile(r"(?=.*\d).*|[A-Z().+/-]{1,4}", re.DOTALL)
"""A word that may be a part of a number which has spaces."""


class MaskStream:
    """
    Args:
        count: hears the kind of each piece that was taken out.
    """

    def __init__(self, masker: Masker, count: Callable[[str], None]) -> None:
        self._masker = masker
        self._count = count
        self._groups = ""
        self._gap = ""
        """A space after them, if one came."""
        self._word = ""
        """That has not ended."""

    def push(self, text: str) -> str:
        """What is certain with these characters."""
        return "".join(map(self._take, text))

    def end(self) -> str:
        """The rest."""
        return self._end_word() + self._end_groups()

    def _take(self, character: str) -> str:
        if not character.isspace():
            self._word += character
            return self._shorten() if self._num_held >= _MAX_CHARS else ""
        told = self._end_word()
        if character == " " and self._groups and not self._gap:
            self._gap = character
            return told
        return told + self._end_groups() + character

    @property
    def _num_held(self) -> int:
        return len(self._groups) + len(self._gap) + len(self._word)

    def _end_word(self) -> str:
        word, self._word = self._word, ""
        if not word:
            return ""
        if _GROUP.fullmatch(word) is None:
            return self._end_groups() + self._masked(word)
        self._groups, self._gap = self._groups + self._gap + word, ""
        return ""

    def _end_groups(self) -> str:
        groups, gap = self._groups, self._gap
        self._groups = self._gap = ""
        return self._masked(groups) + gap

    def _shorten(self) -> str:
        """Give out the beginning of a piece that does not end."""
        text = self._groups + self._gap + self._word
        self._groups = self._gap = self._word = ""
        found = list(apart(self._masker.find(text)))
        end = len(text) - _MAX_FOUND_CHARS
        for each in found:
            if each.start < end < each.end:
                end = each.start or each.end
        told = self._without(text[:end], [each for each in found if each.end <= end])
        return told + "".join(map(self._take, text[end:]))

    def _masked(self, text: str) -> str:
        return self._without(text, apart(self._masker.find(text))) if text else ""

    def _without(self, text: str, found: Iterator[Found] | Sequence[Found]) -> str:
        told, start = [], 0
        for each in found:
            self._count(each.kind)
            told += [text[start : each.start], f"[{each.kind}]"]
            start = each.end
        return "".join((*told, text[start:]))


def apart(found: Sequence[Found]) -> Iterator[Found]:
    """In their order, those that overlap as one."""
    last: Found | None = None
    for each in sorted(found, key=lambda each: (each.start, -each.end)):
        if last is None or each.start >= last.end:
            if last is not None:
                yield last
            last = each
        else:
            last = Found(start=last.start, end=max(last.end, each.end), kind=last.kind)
    if last is not None:
        yield last
