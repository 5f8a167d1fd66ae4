"""Calls of tools read out of answers: the same however the text is cut, names first, nothing of the text lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.serving.tool_parsers.base import CallDelta, ToolNews, new_call_id
from rlserve.serving.tool_parsers.factory import TOOL_FORMATS

Calls = list[tuple[str, str]]
"""Names and arguments."""


def _news(name: str, pieces: Iterable[str]) -> list[ToolNews]:
    numbers = count()
    parser = TOOL_FORMATS[name].parser(lambda: f"id{next(numbers)}")
    return [*(parser.push(piece) for piece in pieces), parser.end()]


def _joined(news: Sequence[ToolNews]) -> tuple[str, Calls]:
    """Content and calls; each call is named once, and first."""
    calls: list[list[str]] = []
    for delta in (delta for each in news for delta in each.calls):
        if delta.name is not None:
            assert (delta.index, delta.id, delta.arguments) == (len(calls), f"id{len(calls)}", "")
            calls.append([delta.name, ""])
        else:
            assert (delta.index, delta.id) == (len(calls) - 1, None)
            assert delta.arguments
            calls[-1][1] += delta.arguments
    return "".join(each.content for each in news), [(name, arguments) for name, arguments in calls]


def _whole(name: str, text: str) -> tuple[str, Calls]:
    return _joined(_news(name, [text]))


A = '<tool_call>\n{"name": "add", "arguments": {"x": 1, "y": [2, "}"]}}\n</tool_call>'
B = '<tool_call>{"arguments": {"q": "a\\"}b"}, "name": "find"}</tool_call>'
ADD, FIND = ("add", '{"x": 1, "y": [2, "}"]}'), ("find", '{"q": "a\\"}b"}')

HERMES: dict[str, tuple[str, Calls]] = {
    "": ("", []),
    " only text\n": (" only text\n", []),
    A: ("", [ADD]),
    f"{A}\n{B}": ("", [ADD, FIND]),
    f"Let me see.\n\n{A}\n": ("Let me see.", [ADD]),
    f"First {B} then": ("First then", [FIND]),
    "<tool_call>none</tool_call>": ("<tool_call>none</tool_call>", []),
    f"<tool_call><tool_call>{B[11:]}": ("<tool_call>", [FIND]),
    f'<tool_call>{{"name": 3}}</tool_call>{A}': ('<tool_call>{"name": 3}</tool_call>', [ADD]),
    '<tool_call>{"arguments": {}}</tool_call>': ('<tool_call>{"arguments": {}}</tool_call>', []),
    '<tool_call>{"name": "now"}</tool_call>': ("", [("now", "{}")]),
    '<tool_call>{"id": 7, "name": "now", "arguments": null}</tool_call>': ("", [("now", "null")]),
    '<tool_call>{"name": "cut", "arguments": {"x": "ab': ("", [("cut", '{"x": "ab')]),
    '<tool_call>{"name": "cut"': ("", [("cut", "")]),
    '<tool_call>{"na': ('<tool_call>{"na', []),
    f"{A[:-5]}": ("", [ADD]),
    "1 < 2 <tool": ("1 < 2 <tool", []),
    '<tool_call>{"name": "twice", "name": "x"}</tool_call>.': ('"}</tool_call>.', [("twice", "")]),
}
LLAMA: dict[str, tuple[str, Calls]] = {
    "": ("", []),
    "  \n": ("  \n", []),
    "Hello {": ("Hello {", []),
    '{"name": "add", "parameters": {"x": 1}}': ("", [("add", '{"x": 1}')]),
    '<|python_tag|>{"name": "add", "parameters": {"x": 1}}': ("", [("add", '{"x": 1}')]),
    '{"name": "a", "arguments": {}}; {"parameters": [], "name": "b"}': ("", [("a", "{}"), ("b", "[]")]),
    '{"name": "a", "parameters": {}}\n{"name": "b", "parameters": {}}': ("", [("a", "{}"), ("b", "{}")]),
    '{"answer": 42, "more": [1]}': ('{"answer": 42, "more": [1]}', []),
    '{"answer": 42}{"name": "a"}': ('{"answer": 42}{"name": "a"}', []),
    '{"name": "a", "parameters": {}} and so on': ("and so on", [("a", "{}")]),
    "<|python_tag|>print(1)": ("<|python_tag|>print(1)", []),
    "<|python": ("<|python", []),
    "<|pyt{}": ("<|pyt{}", []),
    '{"name": "a", "parameters": {}};;': (";;", [("a", "{}")]),
    '; {"name": "a"}': ('; {"name": "a"}', []),
    '{"name": "a", "parameters": 12}': ("", [("a", "12")]),
    '{"name": "a", "parameters": 1"}': ('"}', [("a", "1")]),
    '{"name": "a"': ("", [("a", "")]),
    '{"name" 3': ('{"name" 3', []),
}
CASES = [("hermes", text, *expected) for text, expected in HERMES.items()]
CASES += [("llama3_json", text, *expected) for text, expected in LLAMA.items()]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_calls_are_read_out_of_answers(name: str, text: str, content: str, calls: Calls) -> None:
    found_content, found_calls = _whole(name, text)
    assert found_calls == calls
    assert found_content.split() == content.split()
    if not calls:
        assert found_content == text


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_character_by_character_it_is_the_same(name: str, text: str, content: str, calls: Calls) -> None:
    assert _joined(_news(name, text)) == _whole(name, text)


PIECES = ["<tool_call>", "</tool_call>", "<|python_tag|>", '{"name": "', 'f"', ', "arguments": ', ', "parameters": ']
PIECES += ['{"x": 1}', '"a\\"', "}", "{", ";", " ", "\n", "text", "<", "[1, ", "]", ",", ":", "1", '"', "\\", "ü"]


@given(st.sampled_from(sorted(TOOL_FORMATS)), st.lists(st.sampled_from(PIECES), max_size=25), st.data())
def test_any_text_gives_the_same_however_it_is_cut(name: str, pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    cut = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    assert _joined(_news(name, cut)) == _whole(name, text)


def _write(name: str, calls: Calls) -> str:
    if name == "hermes":
        tagged = (f'<tool_call>\n{{"name": {json.dumps(f)}, "arguments": {a}}}\n</tool_call>' for f, a in calls)
        return "\n".join(tagged)
    return "; ".join(f'{{"name": {json.dumps(f)}, "parameters": {a}}}' for f, a in calls)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted(TOOL_FORMATS)),
    st.lists(st.tuples(st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True), VALUES), max_size=4),
)
def test_whatever_calls_are_written_the_same_are_read(name: str, wanted: list[tuple[str, object]]) -> None:
    calls = [(function, json.dumps(value)) for function, value in wanted]
    assert _whole(name, _write(name, calls)) == ("", calls)


def test_arguments_stream_as_they_come() -> None:
    pieces = ["<tool_call>", '{"name": "f', '"', ', "arguments": {"x"', ": 1", "}}", "</tool_call>"]
    calls = [each.calls for each in _news("hermes", pieces)]
    assert calls[2] == (CallDelta(index=0, id="id0", name="f"),)
    assert [delta.arguments for each in calls[3:] for delta in each] == ['{"x"', ": 1", "}"]


def test_a_long_answer_with_tags_in_broken_calls_takes_no_longer_than_others() -> None:
    text = '<tool_call>{"x": "' * 20_000
    assert _whole("hermes", text) == (text, [])


def test_ids_of_calls_are_unlike() -> None:
    ids = {new_call_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(each.startswith("call_") for each in ids)
