"""Every row is checked before a run begins: what is wrong with the first bad one, and where it stands."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_data_files import all_rows, config, sums, write_jsonl

from rlserve.errors import DataError
from rlserve.rollout.config import DataConfig
from rlserve.rollout.dataset.content_digest import NUM_PARTS, fingerprint, first_difference
from rlserve.rollout.prompt_rows import load_rows

GOOD = '{"prompt": "1", "answer": "1"}\n'


def load_text(folder: Path, text: str | bytes, **changes: Any) -> None:
    path = folder / "a.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    load_rows(config(path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + '{"prompt": "2",\n', r"a\.jsonl:2: not valid JSON: .* at column 16"),
        (GOOD + "\n[1]\n", r"a\.jsonl:3: must be a JSON object, got a list: \["),
        (GOOD + '{"prompt": 5, "answer": "1"}\n', r"a\.jsonl:2: 'prompt' must be text .*, got the number 5"),
        (GOOD + '{"prompt": null, "answer": "1"}\n', r"a\.jsonl:2: 'prompt' must be text .*, got null"),
        (GOOD + '{"answer": "1"}\n', r"a\.jsonl:2: has no 'prompt', only 'answer'; set data\.prompt_field"),
        (GOOD + '{"prompt": " ", "answer": "1"}\n', r"a\.jsonl:2: 'prompt' is empty"),
        (GOOD + '{"prompt": [], "answer": "1"}\n', r"a\.jsonl:2: 'prompt' must be text"),
        (GOOD + '{"prompt": "1", "prompt": "2", "answer": "1"}\n', r"a\.jsonl:2: has 'prompt' twice"),
        (GOOD + '{"prompt": "1"}\n', r"a\.jsonl:2: has no 'answer', only 'prompt'; set data\.answer_field .*null"),
        (GOOD + '{"prompt": "a \\ud83d", "answer": "1"}\n', r"a\.jsonl:2: 'prompt' has half of .* \\ud83d, .*acter 2"),
        (GOOD + '{"prompt": "a", "answer": ["\\ud83d"]}\n', r"a\.jsonl:2: 'answer\.0' has half of a surrogate pair"),
        (GOOD + '{"prompt": "a", "answer": NaN}\n', r"a\.jsonl:2: 'answer' is NaN, which is no number"),
        (GOOD + '{"prompt": "a", "answer": {"b": [-Infinity]}}\n', r"a\.jsonl:2: 'answer\.b\.0' is -Infinity"),
        (
            GOOD + '{"prompt": [{"role": "user", "content": "1"}], "answer": "1"}\n',
            r"a\.jsonl:2: 'prompt' is a list of chat messages: set data\.apply_chat_template=true",
        ),
        (GOOD.encode() + b'{"prompt": "\xff", "answer": "1"}\n', r"a\.jsonl:2: not valid UTF-8: byte 0xff after 12"),
        (GOOD + "[" * 100_000, r"a\.jsonl:2: not valid JSON: nested too deeply"),
        (GOOD, r"a\.jsonl: holds 1 prompt, .* data\.held_out_path"),
        ('{"question": "1"}\n[', r"a\.jsonl:1: has no 'prompt', only 'question'"),
    ],
)
def test_the_first_bad_line_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_text(tmp_path, text)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ('[{"content": "1"}]', r"a\.jsonl:2: 'prompt\.0' must have a 'role' of text, got null"),
        ('[{"role": "user", "content": "1"}, {"role": "user"}]', r":2: 'prompt\.1' must have a 'content' of text"),
        ('[{"role": "user", "content": "\\ud83d"}]', r":2: 'prompt\.0\.content' has half of a surrogate pair"),
        ('["1"]', r":2: 'prompt' must be text or a list of chat messages, got a list"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path: Path, messages: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_text(tmp_path, GOOD + f'{{"prompt": {messages}, "answer": "1"}}\n', apply_chat_template=True)


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        (pa.array(["a", None]), ["1", "2"], r"a\.parquet: row 1 .*: 'prompt' must be text .*, got null"),
        (pa.array([["a"], ["b"]]), ["1", "2"], r"row 0 .*: 'prompt' must be text .*, got a list"),
        (pa.array(["a", "b"]), [b"1", None], r"row 0 .*: 'answer' must be text, .* got bytes"),
        (pa.array(["a", "b"]), [1.5, float("nan")], r"row 1 .*: 'answer' is nan, which is no number"),
    ],
)
def test_a_bad_row_of_parquet_is_named(tmp_path: Path, prompt: Any, answer: Any, message: str) -> None:
    pq.write_table(pa.table({"prompt": prompt, "answer": answer}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load_rows(config(tmp_path / "a.parquet"))


def test_a_bad_held_out_file_is_named(tmp_path: Path) -> None:
    training = write_jsonl(tmp_path / "train.jsonl", sums(2))
    (tmp_path / "held_out.jsonl").write_text(GOOD + "nothing\n")
    with pytest.raises(DataError, match=r"held_out\.jsonl:2: not valid JSON"):
        load_rows(config(training, held_out_path=str(tmp_path / "held_out.jsonl")))


def test_fields_may_be_nested_and_names_with_dots_come_first(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"q": {"text": "1+1="}, "a.b": "literal", "a": {"b": "nested", "b.c": 5}},
            {"q": {"text": "2+2="}, "a": {"b": {"c": True}}, "a.b": {"d": None}},
        ],
    )
    rows = all_rows(path, prompt_field="q.text", answer_field="a.b")
    assert [(row.prompt, row.answer) for row in rows] == [("1+1=", "literal"), ("2+2=", {"d": None})]
    assert [row.answer for row in all_rows(path, prompt_field="q.text", answer_field="a.b.c")] == ["5", "true"]
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: has no 'a\.d', only 'q', 'q\.text', 'a\.b', 'a', 'a\.b', 'a\.b\.c'"
    ):
        all_rows(path, prompt_field="q.text", answer_field="a.d")


def test_the_whole_row_is_kept_with_numbers_as_numbers(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "answer": 1, "tests": [{"in": 2.5}], "source": None}])
    (row,) = all_rows(path)
    assert dict(row.columns) == {"prompt": "a", "answer": 1, "tests": [{"in": 2.5}], "source": None}
    assert row.answer == "1"
    (row,) = all_rows(path, answer_field=None)
    assert row.answer is None


@pytest.mark.parametrize(
    ("num_rows", "asked", "num_held_out", "is_said"),
    [
        (100, None, 10, True),
        (2, None, 1, True),
        (6000, None, 512, False),
        (100, 90, 90, False),
        (100, 100, 10, True),
        (100, 512, 10, True),
        (100, 10, 10, False),
    ],
)
def test_small_data_sets_little_aside(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    num_rows: int,
    asked: int | None,
    num_held_out: int,
    is_said: bool,
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sums(num_rows))
    with caplog.at_level(logging.INFO):
        train, held_out = load_rows(DataConfig(path=str(path), num_held_out=asked))
    assert (len(train), len(held_out)) == (num_rows - num_held_out, num_held_out)
    assert (f"{num_held_out} of {num_rows} prompts are held out" in caplog.text) == is_said


def test_held_out_prompts_that_are_trained_on_too_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", sums(10))
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": "x", "answer": "1"}, *sums(3)])
    load_rows(config(train, held_out_path=str(held_out)))
    assert (
        f"3 of 4 held-out prompts are trained on too, so the held-out score is too good; the first: {held_out}:2"
        in (caplog.text)
    )


@pytest.mark.parametrize(("answers", "is_said"), [([72.0, None], True), ([72.0, 1.5], False), ([None, None], False)])
def test_whole_numbers_in_a_column_of_doubles_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: list[float | None], is_said: bool
) -> None:
    column = pa.array(answers, pa.float64())
    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": column}), tmp_path / "a.parquet")
    all_rows(tmp_path / "a.parquet")
    assert ("every answer is a whole number with a point" in caplog.text) == is_said


@given(
    digests=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3 * NUM_PARTS, unique=True),
    data=st.data(),
)
def test_a_fingerprint_tells_where_content_or_order_changed(digests: list[int], data: st.DataObject) -> None:
    before = np.array(digests, dtype=np.uint64)
    assert first_difference(fingerprint(before), before) is None
    changed = before.copy()
    place = data.draw(st.integers(0, len(digests) - 1))
    changed[place] ^= np.uint64(1)
    found = first_difference(fingerprint(before), changed)
    assert found is not None
    assert found[0] <= place <= found[1]
    assert found[1] - found[0] <= len(digests) // NUM_PARTS
    if len(digests) > 1:
        assert first_difference(fingerprint(before), before[::-1].copy()) is not None
