"""A filter that goes by a file of phrases and regular expressions, which RE2 looks for all at once and in linear time
(https://github.com/google/re2)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlserve.errors import UserError
from rlserve.serving.content.base import ContentFilter, Found

MAX_FILE_BYTES = 2**20
MAX_RULE_CHARS = 256
"""Of a phrase, and of what a regular expression can match: an answer is held back by so many."""
_MAX_KINDS = 64
_MAX_MEMORY_BYTES = 256 * 2**20
"""Of what RE2 makes of all rules."""
_MAX_SPACES = 4
"""Between two words of a phrase."""
_NO_LETTER = r"[^\pL\pM\pN_]"
_KIND = re.compile(r"\[([\w .-]{1,64})\]")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Letters of scripts that put no spaces between words."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A line of the file."""

    kind: str
    expression: str
    """As RE2 reads it."""
    max_chars: int
    phrase: str | None = None
    """Folded, where it is one."""


class DenyList(ContentFilter):
    """
    Raises:
        UserError: RE2 is not installed, or the rules are too many.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        kinds = dict.fromkeys(rule.kind for rule in rules)
        self._of_kinds = [(kind, _any_of([rule for rule in rules if rule.kind == kind])) for kind in kinds]
        self._all = _any_of(rules)
        self._phrases = sorted(rule.phrase for rule in rules if rule.phrase is not None)
        self._max_phrase_chars = max((rule.max_chars for rule in rules if rule.phrase is not None), default=0)
        self._max_expression_chars = max((rule.max_chars for rule in rules if rule.phrase is None), default=0)
        self.max_chars = max(rule.max_chars for rule in rules)

    def find(self, text: str, start: int) -> Found | None:
        """The first that any rule matches. A phrase has the character before it, which tells that a word begins."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()  # half of a character: one mark in its place
        match = self._all.search(text, max(start - 1, 0))
        if match is None:
            return None
        kind = next(kind for kind, rules in self._of_kinds if rules.match(text, match.start()) is not None)
        return Found(start=max(match.start(), start), end=match.end(), kind=kind)

    def num_open(self, text: str) -> int:
        """As many as an expression may match, or those with which a phrase begins."""
        longest = max(self._max_expression_chars, self._num_of_phrase(text))
        return min(len(text), longest)

    def _num_of_phrase(self, text: str) -> int:
        for size in range(min(len(text), self._max_phrase_chars), 0, -1):
            if size < len(text) and _begins_word(text[-size]) and _begins_word(text[-size - 1]):
                continue
            folded = _folded(text[-size:])
            place = bisect_left(self._phrases, folded)
            if place < len(self._phrases) and self._phrases[place].startswith(folded):
                return size + 1
        return 0


def read_deny_list(path: str) -> DenyList:
    """The filter that a file describes.

    Raises:
        UserError: the file cannot be read, a rule is none, or RE2 is not installed.
    """
    if find_spec("re2") is None:
        raise UserError("content.filter=deny_list needs google-re2: pip install 'rlserve[filter]'")
    file = Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"content.deny_list={path} cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"content.deny_list={path} has more than {MAX_FILE_BYTES} bytes")
    rules, kind = [], "deny_list"
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        if (section := _KIND.fullmatch(line)) is not None:
            kind = section[1]
            continue
        try:
            rules.append(_expression_rule(line[1:-1], kind) if _is_expression(line) else _phrase_rule(line, kind))
        except UserError as error:
            raise UserError(f"content.deny_list={path}, line {number}: {error}") from error
    if not rules:
        raise UserError(f"content.deny_list={path} has no rule: write a phrase or a /regular expression/ a line")
    if len({rule.kind for rule in rules}) > _MAX_KINDS:
        raise UserError(f"content.deny_list={path} has more than {_MAX_KINDS} [kinds]")
    return DenyList(rules)


def _is_expression(line: str) -> bool:
    return len(line) > 2 and line.startswith("/") and line.endswith("/")


def _phrase_rule(phrase: str, kind: str) -> Rule:
    """Found as whole words, and with any space between them."""
    words = phrase.split()
    folded = _folded(phrase)
    num_chars = len(phrase) + _MAX_SPACES * len(words) + 2
    if num_chars > MAX_RULE_CHARS:
        raise UserError("the phrase is too long: give its first words")
    expression = rf"[\s\pZ]{{1,{_MAX_SPACES}}}".join(map(re.escape, words))
    before = rf"(?:\A|{_NO_LETTER})" if _begins_word(phrase[0]) else ""
    after = rf"(?:\z|{_NO_LETTER})" if _begins_word(phrase[-1]) else ""
    return Rule(kind=kind, expression=before + expression + after, max_chars=num_chars, phrase=folded)


def _begins_word(character: str) -> bool:
    return (character.isalnum() or character == "_") and _UNSPACED.match(character) is None


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text.casefold())


def _expression_rule(expression: str, kind: str) -> Rule:
    num_chars = _longest_match(expression)
    if num_chars > MAX_RULE_CHARS:
        raise UserError(
            f"/{expression}/ can match more than {MAX_RULE_CHARS} characters, and an answer would have to be held back "
            "by as many: give repetitions a bound, as .{0,40} in the place of .*"
        )
    if _compile(expression).search("") is not None:
        raise UserError(f"/{expression}/ matches an empty text, and so every text")
    return Rule(kind=kind, expression=expression, max_chars=num_chars)


def _longest_match(expression: str) -> int:
    """Most characters that it matches. By Python's own reading, since RE2 tells none; both must understand it."""
    from re import _parser  # type: ignore[attr-defined]

    try:
        return int(_parser.parse(expression).getwidth()[1])
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"/{expression}/ is no regular expression: {error}") from error


def _any_of(rules: Sequence[Rule]) -> Any:
    return _compile("|".join(f"(?:{rule.expression})" for rule in rules))


def _compile(expression: str) -> Any:
    """With RE2, whatever the case of letters."""
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = _MAX_MEMORY_BYTES
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        (reason,) = error.args
        said = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
        raise UserError(f"RE2 (https://github.com/google/re2/wiki/Syntax) refuses it: {said}") from error
