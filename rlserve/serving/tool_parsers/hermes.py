"""``<tool_call>{"name": …, "arguments": …}</tool_call>``, as Hermes and Qwen write it. Text may stand before calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from rlserve.serving.tool_parsers.base import Tool, ToolFormat, ToolNews, ToolParser
from rlserve.serving.tool_parsers.call_scanner import CallScanner
from rlserve.serving.tool_parsers.lark import call_rules, literal, spelled
from rlserve.serving.tool_parsers.news import NewsBuilder

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_ARGUMENT_KEYS = frozenset({"arguments"})


class HermesFormat(ToolFormat):
    """See the module."""

    def parser(self, new_id: Callable[[], str]) -> ToolParser:
        return HermesParser(new_id)

    def grammar(self, tools: Sequence[Tool], *, several: bool, tag_tokens: Collection[str] = ()) -> str:
        rules = call_rules(tools, argument_key="arguments")
        opening, closing = spelled(OPENING + "\n", tag_tokens), spelled("\n" + CLOSING, tag_tokens)
        call = f"call: {opening} object {closing}"
        start = f"start: call ({literal(chr(10))} call)*" if several else "start: call"
        return "\n".join([start, call, *rules])


class HermesParser(ToolParser):
    """What is in the tags and is no call stays text, tags included. Blanks before and between calls are left out."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._news = NewsBuilder(new_id)
        self._tag = ""
        """What may be the beginning of a tag."""
        self._scanner: CallScanner | None = None
        self._is_closing = False
        """Behind a call, whose closing tag comes."""

    def push(self, text: str) -> ToolNews:
        for character in text:
            if self._scanner is not None:
                self._take_of_call(self._scanner, character)
            else:
                self._take_of_text(character)
        return self._news.take()

    def end(self) -> ToolNews:
        if self._scanner is not None and self._scanner.name is None:
            self._news.add_content(OPENING + self._scanner.raw)
        if not self._is_closing:
            self._news.add_content(self._tag)
        self._tag = ""
        return self._news.take_last()

    def _take_of_call(self, scanner: CallScanner, character: str) -> None:
        scanner.push(character)
        self._news.add_call(scanner)
        if scanner.is_done:
            self._scanner, self._is_closing = None, True
        elif scanner.is_broken:
            self._scanner = None
            if scanner.name is None:
                self._news.add_content(OPENING + scanner.raw[:-1])
            self._take_of_text(character)

    def _take_of_text(self, character: str) -> None:
        tag = CLOSING if self._is_closing else OPENING
        self._tag += character
        while not tag.startswith(self._tag):
            if not self._tag[0].isspace():
                self._is_closing, tag = False, OPENING
            self._news.add_content(self._tag[0])
            self._tag = self._tag[1:]
        if self._tag == tag:
            self._tag = ""
            if self._is_closing:
                self._is_closing = False
                self._news.drop_blanks()
            else:
                self._scanner = CallScanner(_ARGUMENT_KEYS)
