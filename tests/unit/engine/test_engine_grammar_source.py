"""How far counts of a regular expression multiply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.grammars.source import num_repetitions


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", 1),
        ("abc", 1),
        ("a{3}", 3),
        ("a{3}b{4}", 4),
        ("(a{3}b){4}", 12),
        ("(a{3}|b{5}){2}", 10),
        ("((a{2}){3}){1,4}", 24),
        ("a{2,}", 2),
        ("a{,7}", 7),
        (r"(a\{3}){4}", 4),
        (r"\({9}x", 9),
        ("[({3}]{4}", 4),
        ("[]{9}]{4}", 4),
        ("(a{3}", 3),
        ("a{3})){2}", 3),
        ("[a{5}", 5),
        ("{", 1),
        ("a{x}", 1),
        ("a{3}{4}", 12),
    ],
)
def test_counts_inside_each_other_multiply(pattern: str, expected: int) -> None:
    assert num_repetitions(pattern) == expected


@given(st.text(alphabet="ab(){},|[]\\0123456789"))
def test_any_text_has_some(pattern: str) -> None:
    assert num_repetitions(pattern) >= 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_nested_groups_come_to_the_product(counts: list[int]) -> None:
    pattern, expected = "a", 1
    for count in counts:
        pattern, expected = f"({pattern}){{{count}}}", expected * count
    assert num_repetitions(pattern) == expected
