"""Reasoning is split off, the same however the text is cut."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.serving.reasoning.factory import REASONING_FORMATS, create_reasoning_parser

OUTSIDE, INSIDE = "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"


def _split(prompt: str, pieces: Iterable[str], name: str = "think_tags") -> tuple[str, str]:
    parser = create_reasoning_parser(name, prompt)
    splits = [*(parser.push(piece) for piece in pieces), parser.end()]
    return "".join(split.reasoning for split in splits), "".join(split.content for split in splits)


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "content"),
    [
        (OUTSIDE, "", "", ""),
        (OUTSIDE, " Hello. ", "", " Hello. "),
        (OUTSIDE, "<think>\nTwo and two.\n</think>\n\nFour.", "Two and two.", "Four."),
        (OUTSIDE, "\n<think>a</think>b", "a", "b"),
        (OUTSIDE, "<think>\n\n</think>\n\nFour.", "", "Four."),
        (OUTSIDE, "No <think>a</think>", "", "No <think>a</think>"),
        (OUTSIDE, "<think>cut off </thi", "cut off </thi", ""),
        (OUTSIDE, "<think> a < b </think> c </think>", "a < b", "c </think>"),
        (OUTSIDE, "<thin", "", "<thin"),
        (OUTSIDE, " ", "", " "),
        (INSIDE, "Two and two.\n</think>\n\nFour. ", "Two and two.", "Four. "),
        (INSIDE, "cut off \n", "cut off", ""),
        (INSIDE, "</think>x", "", "x"),
    ],
)
def test_reasoning_is_split_off(prompt: str, text: str, reasoning: str, content: str) -> None:
    assert _split(prompt, [text]) == (reasoning, content)
    assert _split(prompt, text) == (reasoning, content)


@given(
    st.sampled_from(REASONING_FORMATS),
    st.sampled_from([OUTSIDE, INSIDE]),
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", " ", "\n", "text", "</"]), max_size=14),
    st.data(),
)
def test_any_text_gives_the_same_however_it_is_cut(
    name: str, prompt: str, pieces: list[str], data: st.DataObject
) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cut = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    reasoning, content = _split(prompt, cut, name)
    assert (reasoning, content) == _split(prompt, [text], name)
    assert text.endswith(content)
