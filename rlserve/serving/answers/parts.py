"""An assistant's message as a row of parts, one behind the other: what typed streams and items are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlserve.serving.answers.message import MessageNews

PartKind = Literal["reasoning", "text", "call"]


@dataclass(kw_only=True)
class Part:
    """One of them, as far as it has come."""

    index: int
    """Among the parts of its message."""
    kind: PartKind
    text: str = ""
    """Of a call: its arguments, as JSON."""
    call_id: str = ""
    name: str = ""
    """Of the function that a call calls."""


@dataclass(frozen=True, kw_only=True)
class PartNews:
    """A part begins, goes on by a piece, or has ended. Each begins when the one before has ended."""

    what: Literal["begin", "piece", "end"]
    part: Part
    piece: str = ""


class Parts:
    """Takes the news of one message and tells those of its parts."""

    def __init__(self) -> None:
        self.all: list[Part] = []
        self._is_open = False

    @property
    def current(self) -> Part | None:
        """The one that goes on."""
        return self.all[-1] if self._is_open else None

    def take(self, news: MessageNews) -> Iterator[PartNews]:
        """What is new. All of it must be taken."""
        if news.reasoning:
            yield from self._go_on("reasoning", news.reasoning)
        if news.content:
            yield from self._go_on("text", news.content)
        for call in news.calls:
            if call.name is not None:
                yield from self._begin("call", call_id=call.id or "", name=call.name)
            if call.arguments:
                yield from self._go_on("call", call.arguments)

    def end(self) -> Iterator[PartNews]:
        """Nothing follows. A message without anything is an empty text."""
        if not self.all:
            yield from self._begin("text")
        yield from self._end()

    def _go_on(self, kind: PartKind, piece: str) -> Iterator[PartNews]:
        if self.current is None or self.current.kind != kind:
            yield from self._begin(kind)
        part = self.all[-1]
        part.text += piece
        yield PartNews(what="piece", part=part, piece=piece)

    def _begin(self, kind: PartKind, *, call_id: str = "", name: str = "") -> Iterator[PartNews]:
        yield from self._end()
        part = Part(index=len(self.all), kind=kind, call_id=call_id, name=name)
        self.all.append(part)
        self._is_open = True
        yield PartNews(what="begin", part=part)

    def _end(self) -> Iterator[PartNews]:
        if self._is_open:
            self._is_open = False
            yield PartNews(what="end", part=self.all[-1])
