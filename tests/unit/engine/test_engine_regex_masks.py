"""Masks of regular expressions are remembered by place, and are those that llguidance would compute there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_builders import END_S, make_engine, run
from hypothesis import given
from hypothesis import strategies as st
from json_model import EOS, VOCAB_SIZE, save_json_model
from llguidance import LLMatcher
from structured_setting import structured

from rlserve.engine import StructuredOutput
from rlserve.engine.grammars import compiler as compiler_module
from rlserve.engine.grammars import remembered_masks
from rlserve.engine.grammars.automaton import MAX_EDGES, MAX_PLACES, MAX_STATES, automaton_of
from rlserve.engine.grammars.compiler import GrammarCompiler
from rlserve.engine.grammars.expression import MAX_DEPTH
from rlserve.engine.grammars.matcher import GrammarMatcher, masks_of
from rlserve.engine.grammars.remembered_masks import RememberedMasks
from rlserve.engine.grammars.source import grammar_source
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer

ATOMS = [
    *("a", "b", "0", "-", ":", " ", "é", "_", ",", r"\.", r"\n", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "."),
    *("[a-z]", "[A-Z]", "[^a]", r"[\w-]", r"[a\-c]", "[-a]", "[a-]", "[é-üa]", "[^é]", r"[\]x]", "[a~b]", "[$^]"),
]
COUNTS = ["", "", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{0}"]


def _larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.lists(parts, min_size=1, max_size=3).map(lambda texts: f"({'|'.join(texts)})")
    counted = st.tuples(group | st.sampled_from(ATOMS), st.sampled_from(COUNTS)).map("".join)
    return st.lists(counted, min_size=1, max_size=4).map("".join)


expressions = st.recursive(st.sampled_from(ATOMS), _larger, max_leaves=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_json_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def compiler(folder: Path) -> GrammarCompiler:
    return GrammarCompiler(FolderTokenizer(folder), VOCAB_SIZE, (EOS,))


@given(pattern=expressions, data=st.data())
def test_a_remembered_mask_is_the_one_that_would_be_computed(
    compiler: GrammarCompiler, pattern: str, data: st.DataObject
) -> None:
    wanted = StructuredOutput(kind="regex", text=pattern)
    grammar = compiler.compile(wanted).result(END_S)
    for _ in range(3):
        remembering = grammar.matcher()
        vocabulary = remembering.vocabulary
        computing = GrammarMatcher(LLMatcher(vocabulary.tokenizer, grammar_source(wanted)), vocabulary, None)
        tokens: list[int] = []
        for _ in range(8):
            for matcher in (remembering, computing):
                matcher.follow(np.array(tokens, dtype=np.int32))
            masks, must_end = masks_of([remembering])
            right, right_end = masks_of([computing])
            assert np.array_equal(masks, right), tokens
            assert must_end.tolist() == right_end.tolist()
            assert remembering.problem == computing.problem
            possible = np.flatnonzero(np.unpackbits(right.view(np.uint8)[0], bitorder="little"))
            if computing.problem is not None or possible.tolist() == [EOS]:
                break
            tokens.append(int(data.draw(st.sampled_from(possible[possible != EOS].tolist()))))


@pytest.mark.parametrize(
    ("pattern", "left", "right"),
    [
        ("[a-z]{1,5} x+", "abc", "xyz"),
        ("(ab|cd)*e", "ab", "cdab"),
        (r"(\w+, )*[.]", "", "one, two, "),
        ("(a|b)(c|d)", "a", "b"),
        ("(é|a)b", "", ""),
    ],
)
def test_texts_that_may_be_followed_by_the_same_stand_at_one_place(pattern: str, left: str, right: str) -> None:
    automaton = automaton_of(pattern)
    assert automaton is not None
    state = automaton.after(automaton.start, left.encode())
    assert state is not None
    assert automaton.after(automaton.start, right.encode()) == state


def test_other_texts_do_not() -> None:
    automaton = automaton_of("[a-z]{1,3}(b|c)")
    assert automaton is not None
    assert len({automaton.after(automaton.start, text) for text in (b"", b"a", b"aa", b"aaa", b"aac")}) == 5
    assert automaton.after(automaton.start, b"A") is None
    assert automaton.after(automaton.start, "é".encode()) is None


def test_where_one_text_alone_can_follow_nothing_is_remembered() -> None:
    automaton = automaton_of("[ab]-(--)?")
    assert automaton is not None
    open_after = {}
    for text in (b"", b"a", b"a-", b"a--", b"a---"):
        state = automaton.after(automaton.start, text)
        assert state is not None
        open_after[text] = automaton.is_open(state)
    assert open_after == {b"": True, b"a": False, b"a-": True, b"a--": False, b"a---": False}


@pytest.mark.parametrize(
    "pattern",
    [
        *("^a", "a$", r"\ba", r"(?i)a", "(?=a)", "(?P<x>a)", "a*?", "a+*", "a{2}?", "a{2}{3}", "a{3,2}", "a{,2}"),
        *("[[:alpha:]]", "[a&&b]", "[a--b]", "[a~~b]", "[]a]", "[]", "[^]", "[z-a]", r"[\d-z]", "[a-é]", "[a"),
        *(r"\p{L}", r"\x41", r"\u0041", r"\1", "\\", "(a", "a)", "*a", "}", "]"),
        "(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1),
        f"a{{{MAX_PLACES + 1}}}",
        f"([ab]?){{{2 * int(MAX_EDGES**0.5)}}}",
    ],
)
def test_what_is_not_told_or_too_large_has_no_places(pattern: str) -> None:
    assert automaton_of(pattern) is None


def test_an_expression_with_more_places_than_are_kept_goes_on_without() -> None:
    automaton = automaton_of("(a|b)*a(a|b){16}")
    assert automaton is not None
    numbers = np.random.default_rng(0).integers(2, size=20 * MAX_STATES)
    states = {automaton.after(automaton.start, bytes(b"ab"[bit] for bit in numbers[i : i + 20])) for i in range(2000)}
    assert None in states
    assert len(states) <= MAX_STATES + 1
    assert max(state for state in states if state is not None) < MAX_STATES


def test_tokens_are_those_that_are_drawn_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = r"([A-Z][a-z]{1,4}[ .])+(é|!)?"
    requests = [structured("a", "regex", pattern, n=4), structured("b", "regex", pattern, seed=5, top_k=20)]
    engine = make_engine(folder)
    remembered = run(engine, requests)
    monkeypatch.setattr(compiler_module, "automaton_of", lambda text: None)
    computed = run(make_engine(folder), requests)
    for request_id in ("a", "b"):
        assert [sample.token_ids for sample in remembered[request_id].samples] == [
            sample.token_ids for sample in computed[request_id].samples
        ]
        assert [sample.behaviour_log_probs for sample in remembered[request_id].samples] == [
            sample.behaviour_log_probs for sample in computed[request_id].samples
        ]


def test_a_place_that_was_met_before_is_not_computed_again(
    folder: Path, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = compiler.compile(StructuredOutput(kind="regex", text="[xyz]+[.,]")).result(END_S)
    token_ids = FolderTokenizer(folder).token_ids()
    first, second = grammar.matcher(), grammar.matcher()
    first.follow(np.array([token_ids["x"]], dtype=np.int32))
    mask, _ = masks_of([first])
    second.follow(np.array([token_ids["y"], token_ids["x"], token_ids["y"]], dtype=np.int32))
    monkeypatch.setattr(first.vocabulary, "fill", None)
    again, _ = masks_of([second])
    assert np.array_equal(mask, again)


def test_of_masks_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_masks, "MAX_MASK_BYTES", 2 * 16)
    masks = RememberedMasks(16)
    automaton = automaton_of("a*")
    assert automaton is not None
    for state in (0, 1):
        masks.put((automaton, state), np.full(4, state, dtype=np.int32))
    assert masks.get((automaton, 0)) is not None
    masks.put((automaton, 2), np.full(4, 2, dtype=np.int32))
    assert masks.get((automaton, 1)) is None
    assert masks.get((automaton, 0)).tolist() == [0] * 4  # type: ignore[union-attr]
