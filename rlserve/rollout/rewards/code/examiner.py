"""What runs the tests: functions that they call and nobody defines are those of the program, which is elsewhere.

Runs inside a confinement, with the file descriptors of calls and replies and the size of a reply as arguments. Prints
1 or 0 for each test. The program's process has no way to this one but replies to calls, and those are plain data: equal
to what a test expects, or not.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from collections.abc import Callable
from typing import Any


class NoReplyError(Exception):
    """The program has ended, or says what is no reply."""


class Program:
    """The program under test, from afar."""

    def __init__(self, encode: Callable[[Any], Any], decode: Callable[[Any], Any], max_reply_bytes: int) -> None:
        calls_fd, replies_fd = map(int, sys.argv[1:3])
        self._encode, self._decode = encode, decode
        self._calls = os.fdopen(calls_fd, "w", encoding="utf-8")
        self._replies = os.fdopen(replies_fd, "rb")
        self._max_reply_bytes = max_reply_bytes

    def function(self, name: str) -> Callable[..., Any]:
        """One of its functions."""

        def call(*args: Any, **kwargs: Any) -> Any:
            reply = self._ask({"name": name, "args": self._encode(list(args)), "kwargs": self._encode(kwargs)})
            if "raised" in reply:
                raise _exception(reply["raised"])(str(reply.get("message")))
            for mine, theirs in zip(args, self._decode(reply["args"]), strict=True):
                _change_in_place(mine, theirs)
            return self._decode(reply["value"])

        return call

    def _ask(self, call: dict[str, Any]) -> dict[str, Any]:
        self._calls.write(json.dumps(call) + "\n")
        self._calls.flush()
        line = self._replies.readline(self._max_reply_bytes + 1)
        reply = json.loads(line) if 0 < len(line) <= self._max_reply_bytes else None
        if not isinstance(reply, dict) or not ("raised" in reply or {"value", "args"} <= set(reply)):
            raise NoReplyError
        return reply


def unknown_names(text: str) -> set[str]:
    """Names that a test uses and neither defines nor imports; builtins are never among them."""
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    return used - bound - set(dir(builtins))


def _change_in_place(mine: Any, theirs: Any) -> None:
    """A function may have changed a list, dict or set that it was given."""
    if type(mine) is not type(theirs) or mine == theirs:
        return
    if isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, (dict, set)):
        mine.clear()
        mine.update(theirs)


def _exception(name: Any) -> type[Exception]:
    found = getattr(builtins, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError


def main(encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
    """Run each test."""
    program = Program(encode, decode, max_reply_bytes=int(sys.argv[3]))
    with open("tests.json", encoding="utf-8") as file:
        tests: list[str] = json.load(file)
    verdicts = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # what a test prints is no verdict
    names: dict[str, Any] = {"__name__": "tests"}
    for text in tests:
        for name in unknown_names(text) - set(names):
            names[name] = program.function(name)
        try:
            exec(compile(text, "tests", "exec"), names)
        except (Exception, SystemExit):
            os.write(verdicts, b"0")
        else:
            os.write(verdicts, b"1")
