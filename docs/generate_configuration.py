"""Write ``configuration.md`` and ``serving_configuration.md`` from the configurations' dataclasses: their types,
defaults and field docstrings.

python docs/generate_configuration.py
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from rlserve.config.keys import annotation_of, hints_of, named_of, nested_dataclasses, variants_of
from rlserve.config.tree import RunConfig
from rlserve.serving.config import ServeConfig

_RUN_HEADER = """\
# Configuration

Every key, its type, its default and what it means. Written by `docs/generate_configuration.py` from the docstrings in
the code: change them there. How files, groups and overrides are put together stands in [README](../README.md) and in
`rlserve/config/`; ranges are checked when a configuration is loaded, and `rlserve launch … --dry-run` prints the whole
of it.
"""
_SERVER_HEADER = """\
# Configuration of a server

Every key of `rlserve serve`, its type, its default and what it means. Written by `docs/generate_configuration.py` from
the docstrings in `rlserve/serving/config.py` and `engine/config.py`: change them there. [Serving](serving.md) is the
guide.
"""
SIMPLE_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}


class Page(NamedTuple):
    """One page: the tree of dataclasses that it describes."""

    target: Path
    root: type[Any]
    header: str
    title: str
    """Of the root's own keys."""


PAGES = (
    Page(Path(__file__).with_name("configuration.md"), RunConfig, _RUN_HEADER, "The run"),
    Page(Path(__file__).with_name("serving_configuration.md"), ServeConfig, _SERVER_HEADER, "The server"),
)


class Section(NamedTuple):
    """One dataclass of the tree, at the key where it stands; the root's key is empty."""

    key: str
    config_type: type[Any]


def sections(config_type: type[Any], key: str = "") -> Iterator[Section]:
    """The dataclass itself, then those under it, in order of their fields."""
    yield Section(key, config_type)
    for name, annotation in hints_of(config_type).items():
        child = f"{key}.{name}" if key else name
        for shared in _shared_bases(annotation):
            yield from sections(shared, child)
        for nested in nested_dataclasses(annotation):
            yield from sections(nested, child)
        for element in _element_types(annotation):
            yield from sections(element, f"{child}.N")
        if (named := named_of(annotation)) is not None:
            yield from sections(named, f"{child}.NAME")


def _shared_bases(annotation: Any) -> list[type[Any]]:
    """The dataclasses that several variants under a key are made from, each the nearest to all variants."""
    variants = nested_dataclasses(annotation) if variants_of(annotation) else ()
    found: dict[type[Any], int] = {}
    for variant in variants:
        for base in variant.__mro__[1:]:
            if is_dataclass(base):
                found[base] = found.get(base, 0) + 1
    return [base for base, number in found.items() if number > 1]


def field_docstrings(config_type: type[Any]) -> dict[str, str]:
    """The string that follows each field in the source, on one line; inherited fields included."""
    found: dict[str, str] = {}
    for base in (base for base in reversed(config_type.__mro__) if is_dataclass(base)):
        found |= _own_docstrings(base)
    return found


def _own_docstrings(config_type: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config_type))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = _one_line(str(following.value.value))
    return found


def render(page: Page) -> str:
    """The whole page."""
    found = dict.fromkeys(sections(page.root))
    return "\n".join([page.header, *(line for section in found for line in _render_section(section, page))])


def _render_section(section: Section, page: Page) -> Iterator[str]:
    hints, meanings = hints_of(section.config_type), field_docstrings(section.config_type)
    rows = [field for field in _own_fields(section, page.root) if not nested_dataclasses(hints[field.name])]
    yield f"## {_title(section, page)}\n"
    yield f"{_one_line(inspect.getdoc(section.config_type) or '')}\n"
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in rows:
        key = f"{section.key}.{field.name}" if section.key else field.name
        cells = (f"`{key}`", _type_name(hints[field.name]), _default(field), meanings.get(field.name, ""))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _own_fields(section: Section, root: type[Any]) -> Iterator[Field[Any]]:
    """Without those of a base that variants share, unless a variant has its own default for one."""
    bases = _shared_bases(annotation_of(root, section.key)) if section.key else []
    above = [base for base in bases if base in section.config_type.__mro__[1:]]
    for field in fields(section.config_type):
        if not any(field in fields(base) for base in above):
            yield field


def _title(section: Section, page: Page) -> str:
    if not section.key:
        return page.title
    variants = variants_of(annotation_of(page.root, section.key))
    if variants is None:
        return f"`{section.key}`"
    if section.config_type not in variants.types.values():
        tags = [tag for tag, variant in variants.types.items() if issubclass(variant, section.config_type)]
        if len(tags) == len(variants.types):
            return f"`{section.key}` with any `{variants.discriminator}`"
        return f"`{section.key}` with `{variants.discriminator}` {', '.join(f'`{tag}`' for tag in tags)}"
    (tag,) = (tag for tag, variant in variants.types.items() if variant is section.config_type)
    return f"`{section.key}` with `{variants.discriminator}={tag}`"


def _element_types(annotation: Any) -> Iterator[type[Any]]:
    """Dataclasses that a list under a key may hold."""
    for member in get_args(annotation):
        if get_origin(annotation) is tuple and is_dataclass(member):
            yield member  # type: ignore[misc]
        elif get_origin(annotation) in (Union, types.UnionType):
            yield from _element_types(member)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type_name(member) for member in get_args(annotation))
    if get_origin(annotation) is tuple:
        element = get_args(annotation)[0]
        return "list of the keys below" if is_dataclass(element) else f"list of {_type_name(element)}"
    if get_origin(annotation) is dict:
        return "mapping" if named_of(annotation) is None else "names of your own, each with the keys below"
    return SIMPLE_TYPES[annotation]


def _default(field: Field[Any]) -> str:
    if field.default_factory is dict:
        return "`{}`"
    if field.default is MISSING:
        return "must be given"
    return f"`{json.dumps(field.default)}`"


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"\bNone\b", "null", text).replace("``", "`").split())


if __name__ == "__main__":
    for page in PAGES:
        page.target.write_text(render(page), encoding="utf-8")
