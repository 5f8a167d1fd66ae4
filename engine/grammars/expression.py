"""A regular expression as a tree, as far as its meaning is the same in every notation. Pure.

Only what ASCII characters do is told; of others, a symbol is just a place in the expression. So it is known where a
text stands in it for as long as the text is ASCII, which is what ``automaton.py`` needs. An expression with something
whose meaning depends on notation or flags (anchors, lazy counts, classes in classes, …) gives no tree. A tree that is
missing costs time, a wrong one would cost right answers.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

MAX_DEPTH = 50
"""Of groups in each other."""
_NUM_ASCII = 128
_ALL = (1 << _NUM_ASCII) - 1
_META = frozenset(r"\.+*?()|[]{}^$")
_COUNT = re.compile(r"\{([0-9]{1,5})(?:(,)([0-9]{1,5})?)?\}")


def _set(characters: str) -> int:
    return sum(1 << ord(character) for character in set(characters) if character.isascii())


_DIGITS, _BLANKS = _set(string.digits), _set("\t\n\v\f\r ")
_WORD = _set(string.ascii_letters + string.digits + "_")
_ESCAPED_SETS = {
    "d": _DIGITS,
    "D": _ALL & ~_DIGITS,
    "s": _BLANKS,
    "S": _ALL & ~_BLANKS,
    "w": _WORD,
    "W": _ALL & ~_WORD,
}
_ESCAPED_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r"} | {
    mark: mark for mark in string.punctuation if mark not in "<>"
}


@dataclass(frozen=True)
class Symbol:
    """One character."""

    ascii: int
    """A bit for each ASCII character that it may be."""


@dataclass(frozen=True)
class Sequence:
    """One behind the other; none is the empty text."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class Choice:
    """One of these."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class Repeat:
    """Again and again; ``most`` is None where nothing limits it."""

    part: Tree
    least: int
    most: int | None


Tree = Symbol | Sequence | Choice | Repeat


def parsed(pattern: str) -> Tree | None:
    """The tree of an expression; None where there is something in it that is not told here."""
    try:
        parser = _Parser(pattern)
        tree = parser.choice(0)
    except _UntoldError:
        return None
    return tree if parser.is_at_end else None


class _UntoldError(Exception):
    """Something that is not told here."""


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._place = 0

    @property
    def is_at_end(self) -> bool:
        return self._place == len(self._pattern)

    def choice(self, depth: int) -> Tree:
        parts = [self._sequence(depth)]
        while self._takes("|"):
            parts.append(self._sequence(depth))
        return Choice(tuple(parts)) if len(parts) > 1 else parts[0]

    def _sequence(self, depth: int) -> Tree:
        parts: list[Tree] = []
        while not self.is_at_end and self._pattern[self._place] not in "|)":
            parts.append(self._counted(self._atom(depth)))
        return Sequence(tuple(parts))

    def _counted(self, part: Tree) -> Tree:
        if self._takes("*"):
            counted = Repeat(part, 0, None)
        elif self._takes("+"):
            counted = Repeat(part, 1, None)
        elif self._takes("?"):
            counted = Repeat(part, 0, 1)
        elif found := _COUNT.match(self._pattern, self._place):
            self._place = found.end()
            least = int(found[1])
            most = least if found[2] is None else int(found[3]) if found[3] else None
            if most is not None and most < least:
                raise _UntoldError
            counted = Repeat(part, least, most)
        else:
            return part
        if self._pattern[self._place : self._place + 1] in ("*", "+", "?", "{"):
            raise _UntoldError  # lazy, possessive, or counted twice
        return counted

    def _atom(self, depth: int) -> Tree:
        if self._takes("("):
            if (self._takes("?") and not self._takes(":")) or depth == MAX_DEPTH:
                raise _UntoldError
            tree = self.choice(depth + 1)
            if not self._takes(")"):
                raise _UntoldError
            return tree
        if self._takes("["):
            return self._class()
        if self._takes("."):
            return Symbol(_ALL & ~_set("\n"))
        if self._takes("\\"):
            return Symbol(self._escaped())
        character = self._next()
        if character in _META:
            raise _UntoldError
        return Symbol(_set(character))

    def _class(self) -> Tree:
        """Behind its bracket."""
        is_negated, members = self._takes("^"), self._range()
        while not self._takes("]"):
            members |= self._range()
        return Symbol(_ALL & ~members if is_negated else members)

    def _range(self) -> int:
        first = self._member()
        if self._pattern.startswith("-]", self._place) or not self._takes("-"):
            return first
        last = self._member()
        if first == last == 0:
            return 0
        if first.bit_count() != 1 or last.bit_count() != 1 or last < first:
            raise _UntoldError
        return (last << 1) - first

    def _member(self) -> int:
        """The set that a character or an escape of a class is; empty for what is not ASCII."""
        if self._takes("\\"):
            return self._escaped()
        character = self._next()
        # What begins or ends a class, and what combines classes where it stands twice.
        if character in "[]" or (character in "&~-" and self._pattern.startswith(character, self._place)):
            raise _UntoldError
        return _set(character)

    def _escaped(self) -> int:
        """The set behind a backslash."""
        character = self._next()
        if character in _ESCAPED_SETS:
            return _ESCAPED_SETS[character]
        if character not in _ESCAPED_CHARACTERS:
            raise _UntoldError
        return _set(_ESCAPED_CHARACTERS[character])

    def _takes(self, character: str) -> bool:
        """Go on behind the character if it comes next."""
        if not self._pattern.startswith(character, self._place):
            return False
        self._place += len(character)
        return True

    def _next(self) -> str:
        if self.is_at_end:
            raise _UntoldError
        self._place += 1
        return self._pattern[self._place - 1]
