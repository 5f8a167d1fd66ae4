"""How samples end: stop tokens, end-of-sequence tokens, stop strings, length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlserve.engine import FinishReason, SampleOutput
from rlserve.engine.sequences.stop_strings import StopStringChecker
from rlserve.engine.stats.step_work import StepWork

pytestmark = BOTH_WAYS

PROMPT = (9, 8, 7, 6)
ALPHABET = [chr(ord("0") + index) for index in range(VOCAB_SIZE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has one character a token."""
    folder = save_model(tmp_path_factory.mktemp("model"), "qwen2")
    tokenizer = Tokenizer(models.WordLevel({character: index for index, character in enumerate(ALPHABET)}, "0"))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def free_run(folder: Path) -> SampleOutput:
    """Forty greedy tokens that nothing stops."""
    return run(make_engine(folder), [make_request("0", PROMPT, max_tokens=40, seed=3)])["0"].samples[0]


def test_each_sample_may_have_a_length_of_its_own(folder: Path) -> None:
    request = make_request("0", PROMPT, n=3, max_tokens=9, sample_max_tokens=(2, 9, 5), ignore_eos=True)
    output = run(make_engine(folder), [request])["0"]
    assert [len(sample.token_ids) for sample in output.samples] == [2, 9, 5]
    assert {sample.finish_reason for sample in output.samples} == {FinishReason.LENGTH}


def test_the_last_samples_may_be_greedy(folder: Path) -> None:
    def tokens(**sampling: Any) -> list[tuple[int, ...]]:
        request = make_request("0", PROMPT, max_tokens=9, seed=3, **sampling)
        return [sample.token_ids for sample in run(make_engine(folder), [request])["0"].samples]

    drawn, (greedy,) = tokens(n=2, temperature=1.5), tokens(n=1, temperature=0.0)
    assert tokens(n=3, temperature=1.5, num_greedy=1) == [*drawn, greedy]
    assert greedy not in drawn


def test_the_work_of_a_step_is_told(folder: Path) -> None:
    engine = make_engine(folder)
    engine.add(make_request("0", PROMPT, n=2, max_tokens=9, ignore_eos=True))
    engine.step()
    assert engine.last_work == StepWork(num_samples=0, num_kv_tokens=0, num_prefill_tokens=len(PROMPT))
    engine.step()
    assert engine.last_work == StepWork(num_samples=2, num_kv_tokens=2 * (len(PROMPT) + 1), num_prefill_tokens=0)


def test_length_ends_a_sample_that_nothing_else_ends(free_run: SampleOutput) -> None:
    assert len(free_run.token_ids) == 40
    assert (free_run.finish_reason, free_run.stop_reason) == (FinishReason.LENGTH, None)


def test_the_first_stop_token_ends_the_sample_and_is_kept(folder: Path, free_run: SampleOutput) -> None:
    stop = free_run.token_ids[12]
    end = free_run.token_ids.index(stop)
    outputs = run(
        make_engine(folder), [make_request("0", PROMPT, max_tokens=40, seed=3, stop_token_ids=(stop, VOCAB_SIZE - 1))]
    )
    sample = outputs["0"].samples[0]
    assert sample.token_ids == free_run.token_ids[: end + 1]
    assert (sample.finish_reason, sample.stop_reason) == (FinishReason.STOP, stop)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_end_of_sequence_tokens_come_from_the_folder_and_can_be_ignored(
    folder: Path, free_run: SampleOutput, file: str, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / file).read_text())
    eos = [VOCAB_SIZE - 1, free_run.token_ids[5]]
    (tmp_path / file).write_text(json.dumps(content | {"eos_token_id": eos}))
    engine = make_engine(tmp_path)
    outputs = run(
        engine,
        [
            make_request("ends", PROMPT, max_tokens=40, seed=3),
            make_request("ignores", PROMPT, max_tokens=40, seed=3, ignore_eos=True),
        ],
    )
    assert outputs["ends"].samples[0].finish_reason is FinishReason.STOP
    assert outputs["ends"].samples[0].stop_reason in eos
    assert outputs["ignores"].samples[0].token_ids == free_run.token_ids


def test_a_stop_string_over_several_tokens_ends_the_sample(folder: Path, free_run: SampleOutput) -> None:
    text = "".join(ALPHABET[token] for token in free_run.token_ids)
    string = text[10:13]
    end = text.index(string) + 3
    outputs = run(make_engine(folder), [make_request("0", PROMPT, max_tokens=40, seed=3, stop=("~~~~", string))])
    sample = outputs["0"].samples[0]
    assert sample.token_ids == free_run.token_ids[:end]
    assert (sample.finish_reason, sample.stop_reason) == (FinishReason.STOP, string)


def test_a_stop_string_that_spans_kept_and_new_tokens_of_a_resumed_sample(folder: Path, free_run: SampleOutput) -> None:
    text = "".join(ALPHABET[token] for token in free_run.token_ids)
    string = text[10:14]
    request = make_request("0", PROMPT, max_tokens=40, seed=3, stop=(string,))
    engine = make_engine(folder)
    engine.add(request)
    while engine.stats().num_generated_tokens < text.index(string) + 2:
        assert engine.step() == []
    (partial,) = engine.abort(["0"])
    resumed = request.__class__(**(vars(request) | {"resumed": partial.samples}))
    sample = run(make_engine(folder), [resumed])["0"].samples[0]
    assert sample.token_ids == free_run.token_ids[: text.index(string) + 4]
    assert sample.stop_reason == string


def test_a_stop_string_that_min_tokens_passed_over_is_not_found_later(folder: Path, free_run: SampleOutput) -> None:
    """The longer string keeps the shorter one in the text that is searched."""
    text = "".join(ALPHABET[token] for token in free_run.token_ids)
    string = next(text[end - 2 : end] for end in range(2, 12) if text.count(text[end - 2 : end]) == 1)
    min_tokens = text.index(string) + 2
    request = make_request("0", PROMPT, max_tokens=40, seed=3, stop=(string, "~" * 12), min_tokens=min_tokens)
    assert run(make_engine(folder), [request])["0"].samples[0].token_ids == free_run.token_ids


def test_end_of_sequence_tokens_without_logits_are_never_drawn_and_do_no_harm(
    folder: Path, free_run: SampleOutput, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [VOCAB_SIZE, 10**6]}))
    sample = run(make_engine(tmp_path), [make_request("0", PROMPT, max_tokens=40, seed=3, min_tokens=2)])["0"]
    assert sample.samples[0].token_ids == free_run.token_ids


def test_many_stop_tokens_of_one_request_are_not_compared_with_for_ever(folder: Path) -> None:
    engine = make_engine(folder)
    run(engine, [make_request("0", PROMPT, stop_token_ids=tuple(range(60))), make_request("1", PROMPT)])
    run(engine, [make_request("2", PROMPT, stop_token_ids=(1, 2)), make_request("3", PROMPT)])
    assert engine._table.stop_token_ids.shape[1] == 2


class _Bytes:
    """A tokenizer of single bytes, as byte-level ones decode."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


def test_text_is_held_back_until_a_character_is_whole() -> None:
    checker = StopStringChecker(_Bytes(), b"(", ("é!", "zz"))
    found = [checker.push(byte) for byte in "aé".encode() + b"!"]
    assert found == [None, None, None, "é!"]


def test_broken_bytes_do_not_hide_a_stop_string_for_ever() -> None:
    checker = StopStringChecker(_Bytes(), b"", ("end",))
    found = [checker.push(byte) for byte in b"\xff" * 9 + b"end"]
    assert found[-1] == "end"
    assert set(found[:-1]) == {None}


class _Words:
    """A tokenizer whose tokens are words with a space before them, and which drops the first one, as Llama 2's does."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(f" {'abcdef'[token]}" for token in token_ids).removeprefix(" ")


def test_a_space_before_the_first_word_is_part_of_the_text() -> None:
    checker = StopStringChecker(_Words(), [5, 4], (" b",))
    assert checker.push(1) == " b"


def test_the_text_of_the_prompt_is_not_searched() -> None:
    checker = StopStringChecker(_Words(), [0, 1], ("b c", "f"))
    assert [checker.push(token) for token in (2, 5)] == [None, "f"]
