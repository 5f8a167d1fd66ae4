"""The text of answers as it grows, and conversations as prompts."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from rlserve.errors import DeadlineExceededError, UserError
from rlserve.serving.text.conversation import ConversationRenderer
from rlserve.serving.text.sample_text import SampleText
from rlserve.serving.text.time_limit import run_within
from rlserve.serving.text.vocabulary import Vocabulary
from rlserve.tasks.character_tokenizer import character_tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, as byte-level BPE has them before it has learned anything."""
    tokenizer = Tokenizer(BPE({character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES = Vocabulary(byte_tokenizer())
LETTERS = Vocabulary(character_tokenizer("abcdef "))


def test_tokens_are_told_by_their_bytes() -> None:
    tokens = BYTES.encode("é", add_special_tokens=False)
    assert b"".join(map(BYTES.bytes_of, tokens)) == "é".encode()
    assert [BYTES.text_of(token) for token in tokens] == ["�", "�"]
    assert LETTERS.text_of(2) == "<eos>"
    assert LETTERS.piece_of(9999) == ""


@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_parts_are_the_whole(text: str, cuts: list[int]) -> None:
    tokens = BYTES.encode(text, add_special_tokens=False)
    sample = SampleText(BYTES, BYTES.encode("prompt", add_special_tokens=False))
    bounds = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    parts = [sample.push(tokens[start:end]) for start, end in pairwise(bounds)]
    assert "".join([*parts, sample.end(None)]) == text


def test_a_character_that_is_cut_off_is_told_at_the_end() -> None:
    tokens = BYTES.encode("aé", add_special_tokens=False)
    sample = SampleText(BYTES, ())
    assert sample.push(tokens[:2]) == "a"
    assert sample.end(None) == "�"


@given(text=st.text("abc", max_size=12), stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_told(text: str, stop: list[str]) -> None:
    """Tokens come one by one, and end with the first that completes a stop string, as the engine ends them."""
    sample = SampleText(LETTERS, (), stop=stop)
    told, ended_by = "", None
    for length in range(1, len(text) + 1):
        told += sample.push(LETTERS.encode(text[length - 1], add_special_tokens=False))
        ended_by = next((each for each in stop if text[:length].endswith(each)), None)
        if ended_by is not None:
            text = text[: length - len(ended_by)]
            break
        assert text.startswith(told)
    assert told + sample.end(ended_by) == text


def test_a_stop_string_may_stay() -> None:
    sample = SampleText(LETTERS, (), stop=["bc"], include_stop=True)
    assert sample.push(LETTERS.encode("abc", add_special_tokens=False)) + sample.end("bc") == "abc"


def test_special_tokens_are_left_out_unless_wanted() -> None:
    tokens = (*LETTERS.encode("a", add_special_tokens=False), 2)
    for skips, expected in ((True, "a"), (False, "a<eos>")):
        sample = SampleText(LETTERS, (), skip_special_tokens=skips)
        assert sample.push(tokens) + sample.end(None) == expected


def render(template: str | None, timeout_s: float = 5.0) -> str:
    renderer = ConversationRenderer(character_tokenizer("ab"), template, timeout_s)
    return asyncio.run(renderer.render([{"role": "user", "content": "ab"}], {}))


def test_templates_are_rendered_in_a_sandbox() -> None:
    assert render("{{ messages[0]['content'] }}!") == "ab!"
    with pytest.raises(UserError, match="refuses"):
        render("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="no chat template"):
        render(None)


def test_a_template_that_takes_too_long_is_interrupted() -> None:
    nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DeadlineExceededError, match="rendering"):
        render(nested, timeout_s=0.2)


def test_what_is_interrupted_ends() -> None:
    ends: list[str] = []

    def loop() -> None:
        try:
            while True:
                pass
        finally:
            ends.append("ended")

    async def wait() -> None:
        with pytest.raises(DeadlineExceededError):
            await run_within(loop, 0.05, "looping")
        while not ends:
            await asyncio.sleep(0.01)

    asyncio.run(wait())
    assert ends == ["ended"]
