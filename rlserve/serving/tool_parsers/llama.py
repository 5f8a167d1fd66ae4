"""``{"name": …, "parameters": …}``, as Llama 3 writes it: the whole answer is calls, perhaps behind
``<|python_tag|>``, with ``;`` between them, or it has none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from rlserve.serving.tool_parsers.base import Tool, ToolFormat, ToolNews, ToolParser
from rlserve.serving.tool_parsers.call_scanner import CallScanner
from rlserve.serving.tool_parsers.lark import call_rules, literal
from rlserve.serving.tool_parsers.news import NewsBuilder

OPENING = "<|python_tag|>"
_ARGUMENT_KEYS = frozenset({"parameters", "arguments"})


class LlamaFormat(ToolFormat):
    """See the module."""

    def parser(self, new_id: Callable[[], str]) -> ToolParser:
        return LlamaParser(new_id)

    def grammar(self, tools: Sequence[Tool], *, several: bool, tag_tokens: Collection[str] = ()) -> str:
        start = f"start: object ({literal('; ')} object)*" if several else "start: object"
        return "\n".join([start, *call_rules(tools, argument_key="parameters")])


class LlamaParser(ToolParser):
    """What is no call stays text, and so does all that follows it."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._news = NewsBuilder(new_id)
        self._before = ""
        """Before the object that comes next: blanks, a tag or its beginning, a semicolon."""
        self._scanner: CallScanner | None = None
        self._is_first = True
        self._is_text = False

    def push(self, text: str) -> ToolNews:
        for character in text:
            if self._is_text:
                self._news.add_content(character)
            elif self._scanner is not None:
                self._take_of_call(self._scanner, character)
            else:
                self._take_before_call(character)
        return self._news.take()

    def end(self) -> ToolNews:
        raw = self._scanner.raw if self._scanner is not None and self._scanner.name is None else ""
        if raw or self._is_first or not self._may_come_before_call():
            self._news.add_content(self._before + raw)
        self._before = ""
        return self._news.take_last()

    def _take_of_call(self, scanner: CallScanner, character: str) -> None:
        scanner.push(character)
        self._news.add_call(scanner)
        if scanner.is_done:
            self._scanner, self._before, self._is_first = None, "", False
        elif scanner.is_broken:
            self._give_up(self._before + scanner.raw if scanner.name is None else character)

    def _take_before_call(self, character: str) -> None:
        if character == "{" and self._may_come_before_call():
            self._scanner = CallScanner(_ARGUMENT_KEYS)
            self._take_of_call(self._scanner, character)
            return
        self._before += character
        if not OPENING.startswith(self._before.strip()) and not self._may_come_before_call():
            self._give_up(self._before)

    def _may_come_before_call(self) -> bool:
        return self._before.strip() in (("", OPENING) if self._is_first else ("", OPENING, ";"))

    def _give_up(self, text: str) -> None:
        self._news.add_content(text)
        self._is_text, self._scanner, self._before = True, None, ""
