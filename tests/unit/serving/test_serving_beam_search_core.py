"""The search itself, on tables of probabilities: against all answers that there are, and one that stops late."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.serving.front.beam_search import Beam, BeamSearch, NextTokens

END = 0
Table = Mapping[tuple[int, ...], Sequence[float]]
"""Log-probabilities of all tokens, by the tokens before."""


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, int]:
    """Of three or four tokens, and the most tokens of an answer."""
    num_tokens, max_tokens = draw(st.integers(3, 4)), draw(st.integers(1, 4))
    weights = st.lists(st.integers(1, 1000), min_size=num_tokens, max_size=num_tokens)
    table = {}
    for length in range(max_tokens):
        for prefix in itertools.product(range(num_tokens), repeat=length):
            row = draw(weights)
            table[prefix] = [math.log(weight / sum(row)) for weight in row]
    return table, max_tokens


def likeliest(row: Sequence[float]) -> NextTokens:
    return NextTokens(likeliest=tuple(sorted(enumerate(row), key=lambda each: -each[1])))


def search(table: Table, *, width: int, max_tokens: int, length_penalty: float) -> tuple[list[Beam], int]:
    """The best answers, and the beams that were followed."""
    made = BeamSearch(width=width, max_tokens=max_tokens, length_penalty=length_penalty, end_token_ids=frozenset({END}))
    num_followed = 0
    while made.live:
        assert len(made.live) <= width
        num_followed += len(made.live)
        made.advance([likeliest(table[beam.token_ids]) for beam in made.live])
    return made.best, num_followed


def score(token_ids: Sequence[int], table: Table, length_penalty: float) -> float:
    total = sum(table[tuple(token_ids[:place])][token] for place, token in enumerate(token_ids))
    return total / len(token_ids) ** length_penalty


def all_answers(table: Table, max_tokens: int) -> list[tuple[int, ...]]:
    num_tokens = len(table[()])
    found = []
    for length in range(1, max_tokens + 1):
        for prefix in itertools.product(range(1, num_tokens), repeat=length - 1):
            lasts = range(num_tokens) if length == max_tokens else (END,)
            found += [(*prefix, last) for last in lasts]
    return found


def plain_search(table: Table, width: int, max_tokens: int, length_penalty: float) -> list[float]:
    """Scores of the best answers of a search that goes on to the greatest length, whatever it has found."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []
    for _ in range(max_tokens):
        longer = [
            ((*tokens, token), total + log_prob)
            for tokens, total in live
            for token, log_prob in likeliest(table[tokens]).likeliest[: 2 * width]
        ]
        ended += [each for each in longer if each[0][-1] == END]
        live = sorted((each for each in longer if each[0][-1] != END), key=lambda each: -each[1])[:width]
    scores = [total / len(tokens) ** length_penalty for tokens, total in [*ended, *live]]
    return sorted(scores, reverse=True)[:width]


@given(tables(), st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
def test_a_search_as_wide_as_all_answers_finds_the_best(made: tuple[Table, int], length_penalty: float) -> None:
    table, max_tokens = made
    answers = all_answers(table, max_tokens)
    found, _ = search(table, width=len(answers), max_tokens=max_tokens, length_penalty=length_penalty)
    assert {beam.token_ids for beam in found} == set(answers)
    scores = sorted((score(answer, table, length_penalty) for answer in answers), reverse=True)
    assert [score(beam.token_ids, table, length_penalty) for beam in found] == pytest.approx(scores)


@given(tables(), st.integers(1, 3), st.sampled_from([-2.0, -0.5, 0.0, 0.7, 1.0, 3.0]))
def test_an_early_end_changes_nothing(made: tuple[Table, int], width: int, length_penalty: float) -> None:
    table, max_tokens = made
    found, _ = search(table, width=width, max_tokens=max_tokens, length_penalty=length_penalty)
    assert len({beam.token_ids for beam in found}) == len(found) == width
    scores = [score(beam.token_ids, table, length_penalty) for beam in found]
    assert scores == pytest.approx(plain_search(table, width, max_tokens, length_penalty))


@given(tables(), st.integers(1, 3))
def test_what_is_told_of_a_beam_is_true(made: tuple[Table, int], width: int) -> None:
    table, max_tokens = made
    found, num_followed = search(table, width=width, max_tokens=max_tokens, length_penalty=1.0)
    assert num_followed <= 1 + width * (max_tokens - 1)
    for beam in found:
        expected = [table[beam.token_ids[:place]][token] for place, token in enumerate(beam.token_ids)]
        assert list(beam.log_probs) == expected
        assert beam.sum_log_probs == pytest.approx(sum(expected))
        assert beam.end_token_id == (END if beam.token_ids[-1] == END else None)
        assert beam.end_token_id is not None or len(beam.token_ids) == max_tokens
        assert [dict(each.likeliest)[token] for each, token in zip(beam.next_tokens, beam.token_ids, strict=True)] == (
            expected
        )


def test_it_ends_as_soon_as_nothing_better_can_come() -> None:
    row = [math.log(0.9), math.log(0.06), math.log(0.04)]
    table = {prefix: row for length in range(50) for prefix in [(1,) * length, (2, *(1,) * max(length - 1, 0))]}
    found, num_followed = search(table, width=1, max_tokens=50, length_penalty=0.0)
    assert [beam.token_ids for beam in found] == [(END,)]
    assert num_followed == 1


def test_longer_answers_gain_by_a_penalty_above_zero() -> None:
    half = math.log(0.5)
    table = {(): [half, math.log(0.49), math.log(0.01)], (1,): [math.log(0.98), math.log(0.01), math.log(0.01)]}
    table[(2,)] = table[(1,)]
    best = {
        penalty: search(table, width=2, max_tokens=2, length_penalty=penalty)[0][0].token_ids for penalty in (0.0, 1.0)
    }
    assert best == {0.0: (END,), 1.0: (1, END)}
