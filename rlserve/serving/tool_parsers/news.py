"""Gathers what a piece of an answer has brought."""

from __future__ import annotations

from collections.abc import Callable

from rlserve.serving.tool_parsers.base import CallDelta, ToolNews
from rlserve.serving.tool_parsers.call_scanner import CallScanner


class NewsBuilder:
    """Blanks are held back until something follows: those before and behind a call belong to nobody."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._content: list[str] = []
        self._blanks: list[str] = []
        self._scanner: CallScanner | None = None
        """Of the call that was begun last."""
        self._num_calls = 0
        self._calls: list[CallDelta] = []

    def add_content(self, text: str) -> None:
        """Text that is no call."""
        for character in text:
            if character.isspace():
                self._blanks.append(character)
            else:
                self._content += [*self._blanks, character]
                self._blanks = []

    def drop_blanks(self) -> None:
        """Those that came last."""
        self._blanks = []

    def add_call(self, scanner: CallScanner) -> None:
        """A scanner has taken a character."""
        if scanner.name is None:
            return
        if scanner is not self._scanner:
            self._gather()
            self._scanner, self._blanks = scanner, []
            self._calls.append(CallDelta(index=self._num_calls, id=self._new_id(), name=scanner.name))
            self._num_calls += 1

    def take(self) -> ToolNews:
        """What has come since the last time."""
        self._gather()
        news = ToolNews(content="".join(self._content), calls=tuple(self._calls))
        self._content, self._calls = [], []
        return news

    def take_last(self) -> ToolNews:
        """The same, when nothing follows."""
        if self._num_calls == 0:
            self._content += self._blanks
        self._blanks = []
        return self.take()

    def _gather(self) -> None:
        """The arguments of the call so far."""
        arguments = "" if self._scanner is None else self._scanner.new_arguments()
        if arguments:
            self._calls.append(CallDelta(index=self._num_calls - 1, arguments=arguments))
