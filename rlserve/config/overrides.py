"""Reading overrides, ``key=value`` in Hydra's grammar, all problems at once.

A key that takes text takes what was typed wherever Hydra would read something else or nothing: a number, a bracket, an
equals sign, a letter beyond ASCII::

    name=007    data.path=/data/x=1/été(2).jsonl                  as typed
    name="a b"    name=a\\,b    name=${seed}    name=null          as in Hydra, for which NULL is null too
    tracking.wandb.tags=ppo    tracking.wandb.tags=[ppo,"a,b"]    lists of text: one needs no brackets
    rollout.stop=[\\n\\n,\\t]                                     \\n \\t \\r are a line's end, a tab, a return
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rlserve.config.keys import annotation_of, is_list, is_text, is_text_list
from rlserve.config.tree import RunConfig
from rlserve.errors import Problem

OVERRIDE_SOURCE = "override"
"""Shown in the place of a file."""
_ELEMENT = re.compile(
    r"""\s*(?:"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>(?:\\.|[^'\\])*)'|(?P<bare>(?:\\.|[^,])*?))\s*(?:,|$)""",
    re.DOTALL,
)
"""One text of a list and the comma behind it."""
_ESCAPE = re.compile(r"""\\([ntr\\"',\[\](){}:=\s])""")
_CONTROL_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True, kw_only=True)
class Override:
    """One override: a value for a key, or a choice for a group."""

    key: str
    """Dotted."""
    value: Any
    """Plain data; a string may hold an interpolation."""
    typed: str
    """The value as it was typed: what names the choice of a group."""


def parse_overrides(
    texts: Sequence[str], root: type[Any] = RunConfig
) -> tuple[tuple[Override, ...], tuple[Problem, ...]]:
    """Read overrides of a tree of dataclasses; those that are refused are left out and described."""
    parser = OverridesParser.create()
    read = [_parse(parser, text, root) for text in texts]
    return (
        tuple(item for item in read if isinstance(item, Override)),
        tuple(item for item in read if isinstance(item, Problem)),
    )


def _parse(parser: OverridesParser, text: str, root: type[Any]) -> Override | Problem:
    def refused(message: str) -> Problem:
        return Problem(text, message, OVERRIDE_SOURCE)

    key, equals, typed = text.partition("=")
    if text.startswith("+"):
        return refused(f"no key is ever added, every one has a default: write {text.lstrip('+')}")
    if text.startswith("~"):
        return refused("no key is ever taken away: give it the value that you want")
    if not equals or not key.strip():
        return refused("must be key=value")
    if key.split(".")[0].split("/")[0] == "hydra":
        return refused("Hydra's own settings have no effect here")
    annotation = annotation_of(root, key)
    if is_text(annotation):
        return Override(key=key, value=_read_text(parser, text), typed=typed)
    if is_text_list(annotation):
        return _read_text_list(key, typed)
    try:
        parsed = parser.parse_override(text)
    except HydraException as error:
        if is_list(annotation):
            return refused(f"cannot be read: {_first_line(error)}")
        return Override(key=key, value=typed, typed=typed)  # whoever knows what must stand there says so
    if parsed.package is not None:
        return refused("a group cannot be put elsewhere: leave out the @")
    if parsed.is_sweep_override():
        if is_list(annotation):
            return refused(f"is more than one value: write {shlex.quote(f'{key}=[{typed}]')} for a list")
        return Override(key=key, value=typed, typed=typed)
    return Override(key=parsed.key_or_group, value=parsed.value(), typed=typed)


def _read_text(parser: OverridesParser, text: str) -> str | None:
    """The value of a key that takes text: as Hydra reads it where it reads text or null, else as typed."""
    typed = text.partition("=")[2]
    try:
        parsed = parser.parse_override(text)
    except HydraException:
        return typed
    value = typed if parsed.is_sweep_override() else parsed.value()
    return value if value is None or isinstance(value, str) else typed


def _read_text_list(key: str, typed: str) -> Override | Problem:
    """The value of a key that takes a list of texts; one text without brackets is a list of one."""
    if typed.strip().lower() == "null":
        return Override(key=key, value=None, typed=typed)
    bracketed = typed.strip().startswith("[") and typed.strip().endswith("]")
    texts = _split(typed.strip()[1:-1] if bracketed else typed)
    if not bracketed and (len(texts) > 1 or typed.endswith(",")):
        as_list, as_one = shlex.quote(f"{key}=[{typed}]"), shlex.quote(f'{key}="{typed}"')
        return Problem(f"{key}={typed}", f"write {as_list} for a list, {as_one} for one text", OVERRIDE_SOURCE)
    return Override(key=key, value=texts, typed=typed)


def _split(typed: str) -> list[str]:
    """The texts of a list, commas outside of quotes between them, escapes resolved."""
    texts = []
    position = 0
    while position < len(typed):
        found = _ELEMENT.match(typed, position)
        assert found is not None, "the last alternative takes everything up to a comma"
        text = next(group for group in found.groups() if group is not None)
        texts.append(_ESCAPE.sub(lambda escape: _CONTROL_CHARACTERS.get(escape[1], escape[1]), text))
        position = found.end()
    return texts


def _first_line(error: HydraException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next(line for line in lines if line and not line.startswith("Error parsing override"))
