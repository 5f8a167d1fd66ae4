"""Bad words: which tokens they are, and that exactly their last tokens are forbidden, where the others were drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_builders import VOCAB_SIZE, make_engine, make_request, run, save_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlserve.engine import Engine, RequestOutput
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.engine.sampling.support import unpack_support
from rlserve.engine.sequences.bad_words import bad_word_sequences

PIECES = [" ", "a", "b", "c", "ab", " c", " cab", *(chr(0x4E00 + index) for index in range(VOCAB_SIZE - 7))]
MERGES = [("a", "b"), (" ", "c"), (" c", "ab")]
SPACE, A, B, C, AB, SPACE_C, SPACE_CAB = range(7)
PROMPT = (B, A, C)


def _save(folder: Path, pieces: list[str]) -> Path:
    save_model(folder, "qwen3", initializer_range=0.1)
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, MERGES))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("model"), PIECES)


@pytest.fixture(params=["cpu", "torch"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Engine:
    return make_engine(folder, attention_backend=request.param)


def test_a_word_has_the_tokens_of_the_beginning_of_a_text_and_those_after_a_space(folder: Path) -> None:
    words = bad_word_sequences(["cab", "b", "  aa", "c"], FolderTokenizer(folder).encode)
    assert words == {
        "cab": ((C, AB), (SPACE_CAB,)),
        "b": ((B,), (SPACE, B)),
        "  aa": ((A, A), (SPACE, A, A)),
        "c": ((C,), (SPACE_C,)),
    }


WORDS: dict[str, tuple[str, ...]] = {"none": (), "cab": ("cab",), "long": ("aaa", "ca"), "short": ("b", "cab")}
FORBIDDEN: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": (),
    "cab": ((C, AB), (SPACE_CAB,)),
    "long": ((A, A, A), (SPACE, A, A, A), (C, A), (SPACE_C, A)),
    "short": ((B,), (SPACE, B), (C, AB), (SPACE_CAB,)),
}


def _requests(**sampling: Any) -> list[Any]:
    allowed = {"allowed_token_ids": tuple(range(7)), "kept_support": True, "max_tokens": 40, "n": 3}
    return [make_request(name, PROMPT, **(allowed | sampling), bad_words=words) for name, words in WORDS.items()]


def _assert_exactly_the_ends_are_forbidden(outputs: dict[str, RequestOutput]) -> int:
    """How many draws a word of several tokens narrowed."""
    num_narrowed = 0
    for name, forbidden in FORBIDDEN.items():
        assert outputs[name].finished
        for sample in outputs[name].samples:
            for place, packed in enumerate(sample.kept_support):
                before = sample.token_ids[:place]
                ends = {word[-1] for word in forbidden if len(word) == 1 or before[-len(word) + 1 :] == word[:-1]}
                kept = np.flatnonzero(unpack_support(packed, VOCAB_SIZE)).tolist()
                assert kept == sorted(set(range(7)) - ends)
                num_narrowed += len(ends) > sum(len(word) == 1 for word in forbidden)
    return num_narrowed


def test_the_last_token_is_forbidden_exactly_where_the_others_were_drawn(engine: Engine, folder: Path) -> None:
    outputs = run(engine, _requests())
    assert _assert_exactly_the_ends_are_forbidden(outputs) > 10
    small = make_engine(folder, num_blocks=14)
    preempted = run(small, _requests())
    assert small.stats().num_preemptions > 0
    assert {name: [sample.token_ids for sample in output.samples] for name, output in preempted.items()} == {
        name: [sample.token_ids for sample in output.samples] for name, output in outputs.items()
    }


def test_a_resumed_sample_goes_on_with_the_words_it_began(folder: Path) -> None:
    expected = run(make_engine(folder), _requests())
    engine = make_engine(folder)
    for request in _requests():
        engine.add(request)
    for _ in range(9):
        engine.step()
    partial = {output.request_id: output.samples for output in engine.abort(list(WORDS))}
    outputs = run(make_engine(folder), [replace(request, resumed=partial[request.id]) for request in _requests()])
    assert _assert_exactly_the_ends_are_forbidden(outputs) > 10
    for name in WORDS:
        assert [sample.token_ids for sample in outputs[name].samples] == [
            sample.token_ids for sample in expected[name].samples
        ]


def _refusal(folder: Path, **sampling: Any) -> str:
    outputs = run(make_engine(folder), [make_request("bad", PROMPT, **sampling), make_request("good", PROMPT)])
    assert outputs["good"].finished
    return outputs["bad"].error or ""


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"bad_words": "cab"}, "bad_words must be a tuple of strings that are not blank, got 'cab'"),
        ({"bad_words": ("cab", " ")}, "bad_words must be a tuple of strings that are not blank"),
        ({"bad_words": (7,)}, "bad_words must be a tuple of strings that are not blank"),
        ({"bad_words": ("\ud800",)}, "malformed request"),
        ({"bad_words": ("!",)}, "bad_words has '!', which is no text in tokens of the model"),
        ({"bad_words": ("cab", "b"), "allowed_token_ids": (B, AB)}, "no token may be left to draw"),
    ],
)
def test_bad_words_that_cannot_be_served_are_refused(folder: Path, sampling: dict[str, Any], message: str) -> None:
    assert message in _refusal(folder, **sampling)


def test_words_need_a_tokenizer_with_no_more_tokens_than_the_model(tmp_path: Path) -> None:
    save_model(tmp_path / "without")
    assert "stop strings, bad words and structured outputs need a tokenizer" in _refusal(
        tmp_path / "without", bad_words=("cab",)
    )
    larger = _save(tmp_path / "larger", [*PIECES, "~"])
    assert "bad_words has '~', which is no text" in _refusal(larger, bad_words=("~",))
