"""Reads one call, ``{"name": "…", "arguments": {…}}``, character by character: its name as soon as it is whole, its
arguments as they come.

    object ──{──► key ──"…"──► colon ──:──► value ──► comma ──}──► done
                   ▲                                    │
                   └──────────────────,─────────────────┘         what does not fit anywhere ──► broken
"""

from __future__ import annotations

import json
from collections.abc import Callable

_BLANKS = " \t\r\n"


class CallScanner:
    """The keys may come in any order, and others are passed over. Arguments are not looked into: they are the text of
    the value, whatever it is.

    Args:
        argument_keys: that the arguments may have.
    """

    def __init__(self, argument_keys: frozenset[str]) -> None:
        self.name: str | None = None
        self.is_done = False
        self.is_broken = False
        self._argument_keys = argument_keys
        self._raw: list[str] = []
        self._arguments: list[str] = []
        """Those that were not asked for."""
        self._has_arguments = False
        self._key = ""
        self._text: list[str] = []
        """Of the key or the name so far."""
        self._is_in_scalar = False
        self._depth = 0
        self._in_string = self._escaped = False
        self._take: Callable[[str], bool] = self._object

    def push(self, character: str) -> None:
        """Take the next character; there must be no more once it is done or broken."""
        assert not self.is_done
        assert not self.is_broken
        if self.name is None:
            self._raw.append(character)
        if not self._take(character):
            self.is_broken = True
        elif self.is_done:
            # Without a name it is an object like others.
            self.is_broken, self.is_done = self.name is None, self.name is not None

    @property
    def raw(self) -> str:
        """All that was taken before the name was known."""
        return "".join(self._raw)

    def new_arguments(self) -> str:
        """Those that came since this was last asked, once the name is there; an empty object for a call without."""
        if self.name is None:
            return ""
        if self.is_done and not self._has_arguments:
            self._arguments, self._has_arguments = ["{}"], True
        new, self._arguments = "".join(self._arguments), []
        return new

    def _object(self, character: str) -> bool:
        if character == "{":
            self._take = self._first_key
        return character in "{" + _BLANKS

    def _first_key(self, character: str) -> bool:
        if character == "}":
            self.is_done = True
            return True
        return self._before_key(character)

    def _before_key(self, character: str) -> bool:
        if character == '"':
            self._text, self._take = [character], self._in_key
        return character in '"' + _BLANKS

    def _in_key(self, character: str) -> bool:
        self._text.append(character)
        if self._ends_string(character):
            key = _string(self._text)
            self._key, self._take = key or "", self._colon
            return key is not None
        return True

    def _colon(self, character: str) -> bool:
        if character == ":":
            self._take = self._before_value
        return character in ":" + _BLANKS

    def _before_value(self, character: str) -> bool:
        if character in _BLANKS:
            return True
        if self._key in self._argument_keys:
            if self._has_arguments:
                return False
            self._has_arguments = True
        self._text, self._take = [], self._in_value
        return self._in_value(character)

    def _in_value(self, character: str) -> bool:
        if self._in_string:
            self._add(character)
            if self._ends_string(character):
                self._in_string = False
                return self._depth > 0 or self._end_value()
            return True
        if self._is_in_scalar and character in ",}" + _BLANKS:
            return self._end_value() and self._comma(character)
        if self._depth == 0 and character in (',}]:"{[' if self._is_in_scalar else ",}]:"):
            return False
        self._add(character)
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth > 0 or self._end_value()
        self._is_in_scalar = self._depth == 0 and not self._in_string
        return True

    def _add(self, character: str) -> None:
        if self._key in self._argument_keys:
            self._arguments.append(character)
        elif self._key == "name":
            self._text.append(character)

    def _end_value(self) -> bool:
        self._take, self._is_in_scalar = self._comma, False
        if self._key != "name":
            return True
        if self.name is not None:
            return False
        self.name = _string(self._text)
        return bool(self.name)

    def _comma(self, character: str) -> bool:
        if character == ",":
            self._take = self._before_key
        elif character == "}":
            self.is_done = True
        return character in ",}" + _BLANKS

    def _ends_string(self, character: str) -> bool:
        ends = character == '"' and not self._escaped
        self._escaped = character == "\\" and not self._escaped
        return ends


def _string(text: list[str]) -> str | None:
    """What a JSON string says; None if it is none."""
    try:
        value = json.loads("".join(text))
    except ValueError:
        return None
    return value if isinstance(value, str) else None
