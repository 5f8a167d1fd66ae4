"""The data set: what is read, what is refused and how, and the stream of prompts made of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rollout_tokenizers import CHARACTERS, character_tokenizer

from rlserve.errors import DataError
from rlserve.rollout.columns import Columns
from rlserve.rollout.config import DataConfig
from rlserve.rollout.data import PROMPT_EMPTY, PROMPT_TOO_LONG, PromptEncoder, PromptSource, load_prompts
from rlserve.rollout.rows import PromptRow, load_rows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the network nor the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def sums(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(count)]


def config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(path=str(path), **({"num_held_out": 1} | changes))


def load(path: Path, **changes: Any) -> tuple[PromptSource, list[str]]:
    """The source and the texts of the held-out prompts."""
    source, held_out = load_prompts(config(path, **changes), character_tokenizer(), seed=0, max_prompt_tokens=100)
    return source, [group.prompt_text for group in held_out]


def test_held_out_and_training_rows_share_none_and_leave_none_out(tmp_path: Path) -> None:
    source, held_out = load(write_jsonl(tmp_path / "sums.jsonl", sums(20)), num_held_out=5)
    training = [source.next() for _ in range(15)]
    assert source.num_prompts == 15
    assert sorted(held_out + [group.prompt_text for group in training]) == sorted(row["prompt"] for row in sums(20))
    assert all(group.prompt_text == f"{group.row}+1=" and group.answer == str(group.row + 1) for group in training)


def test_the_held_out_rows_do_not_depend_on_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(20))
    splits = [
        load_prompts(config(path, num_held_out=5), character_tokenizer(), seed=seed, max_prompt_tokens=9)[1]
        for seed in (0, 1)
    ]
    assert splits[0] == splits[1]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    import datasets

    path = tmp_path / f"sums{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, sums(4))
    elif suffix == ".json":
        path.write_text(json.dumps(sums(4)))
    else:
        datasets.Dataset.from_list(sums(4)).to_parquet(path)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", sums(2))
    training, _ = load_rows(config(path, held_out_path=str(held_out)))
    assert [(row.prompt, row.answer) for row in training] == [(row["prompt"], row["answer"]) for row in sums(4)]


def test_a_folder_has_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sums" / "train.jsonl", sums(3))
    write_jsonl(tmp_path / "sums" / "test.jsonl", [{"prompt": "2+2=", "answer": "4"}])
    training, held_out = load_rows(config(tmp_path / "sums", held_out_path=str(tmp_path / "sums")))
    assert [row.prompt for row in training] == ["0+1=", "1+1=", "2+1="]
    assert [row.prompt for row in held_out] == ["2+2="]
    with pytest.raises(DataError, match=r"cannot be loaded \(split 'dev'\).*train"):
        load_rows(config(tmp_path / "sums", split="dev"))


def test_answers_may_be_numbers_null_or_absent(tmp_path: Path) -> None:
    numbers = write_jsonl(tmp_path / "numbers.jsonl", [{"prompt": "a", "answer": 7}, {"prompt": "b", "answer": None}])
    rows, _ = load_rows(config(numbers, held_out_path=str(numbers)))
    assert [row.answer for row in rows] == ["7", None]
    absent = write_jsonl(tmp_path / "absent.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    rows, _ = load_rows(config(absent, answer_field=None))
    assert rows[0].answer is None


GOOD = '{"prompt": "1", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + '{"prompt": "2",\n', r"a\.jsonl:2: not valid JSON: .* at column 16"),
        (GOOD + "\n[1]\n", r"a\.jsonl:3: must be a JSON object, got list \[1\]"),
        (GOOD + '{"prompt": 5, "answer": "1"}\n', r"a\.jsonl:2: 'prompt' must be a string, got int 5"),
        (GOOD + '{"answer": "1"}\n', r"a\.jsonl:2: 'prompt' must be a string, got NoneType None"),
        ('{"prompt": 1, "answer": "1"}\n', r"a\.jsonl:1: 'prompt' must be a string, got int 1"),
        ("", r"a\.jsonl: cannot be loaded .*there is nothing in it"),
        ('{"question": "1", "answer": "1"}\n', "no column 'prompt', only 'question', 'answer'; set data.prompt_field"),
        ('{"prompt": "1"}\n', r"no column 'answer', only 'prompt'; set data.answer_field .*null"),
        ('{"prompt": "1", "answer": [1]}\n', r"'answer' must hold only strings or only numbers, but holds List"),
        ('{"prompt": "1", "answer": true}\n', r"'answer' must hold only strings .* holds Value\('bool'\)"),
        (GOOD + '{"prompt": "1", "answer": 2}\n', r"'answer' must hold only strings .* holds Json"),
        (GOOD, r"holds 1 prompts, of which data.num_held_out=1 would be set aside"),
    ],
)
def test_bad_lines_and_columns_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        load_rows(config(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[\n{"prompt": "1"},\n{"prompt" "2"}\n]', r"a\.json:3: not valid JSON"),
        (
            "a.json",
            f'[{GOOD}, {{"prompt": 2, "answer": "1"}}]',
            r"a\.json: record 1: 'prompt' must be a string, got int",
        ),
        ("a.json", GOOD + '{"prompt" "2"}', r"a\.json:2: not valid JSON"),
        ("a.csv", "prompt,answer\n", r"a\.csv: not a \.jsonl, \.json, \.parquet file"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot be loaded"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_rows(config(tmp_path / name))


@pytest.mark.parametrize(
    ("column", "message"),
    [(["a", None], "row 1 has no 'prompt'"), ([["a"], ["b"]], r"'prompt' must hold strings, but holds List")],
)
def test_bad_parquet_columns_are_named(tmp_path: Path, column: list[Any], message: str) -> None:
    import datasets

    datasets.Dataset.from_dict({"prompt": column, "answer": ["1", "2"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load_rows(config(tmp_path / "a.parquet"))


@pytest.mark.parametrize("path", ["nowhere.jsonl", "./nowhere", "/nowhere/at/all"])
def test_a_path_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(DataError, match=f"{path}: no such file or folder"):
        load_rows(DataConfig(path=path))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded .*doesn't contain any data files"):
        load_rows(config(tmp_path))


def test_a_broken_held_out_file_is_named(tmp_path: Path) -> None:
    training = write_jsonl(tmp_path / "train.jsonl", sums(2))
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "1", "answer": "1"}\nnothing\n')
    with pytest.raises(DataError, match=r"held_out\.jsonl:2: not valid JSON"):
        load_rows(config(training, held_out_path=str(tmp_path / "held_out.jsonl")))


def test_every_epoch_hands_out_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    source, _ = load(write_jsonl(tmp_path / "sums.jsonl", sums(31)))
    groups = [source.next() for _ in range(60)]
    epochs = [[group.row for group in groups[:30]], [group.row for group in groups[30:]]]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 30
    assert epochs[0] != epochs[1]
    assert [group.id for group in groups] == [f"{epoch}:{row}" for epoch in (0, 1) for row in epochs[epoch]]
    assert [group.position for group in groups] == list(range(60))


def test_without_shuffling_rows_come_in_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(3))
    source, _ = load(path, shuffle=False, held_out_path=str(path))
    assert [source.next().row for _ in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("num_before", [0, 4, 9, 10, 25])
def test_a_restored_source_goes_on_where_it_stopped(tmp_path: Path, num_before: int) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(11))
    source, _ = load(path)
    before = [source.next() for _ in range(num_before)]
    saved = json.loads(json.dumps(source.snapshot()))
    after = [source.next() for _ in range(15)]
    restored, _ = load(path)
    restored.restore(saved)
    assert restored.position == num_before
    assert [restored.next() for _ in range(15)] == after
    assert [restored.get(group.id, position=group.position) for group in before] == before
    assert restored.position == num_before + 15


def test_a_run_is_not_resumed_on_other_prompts(tmp_path: Path) -> None:
    source, _ = load(write_jsonl(tmp_path / "sums.jsonl", sums(11)))
    first = source.next()
    other, _ = load(write_jsonl(tmp_path / "other.jsonl", sums(12)))
    with pytest.raises(DataError, match="num_prompts was 10 and is now 11"):
        other.restore(source.snapshot())
    with pytest.raises(DataError, match=f"where prompt {first.id}x was"):
        source.get(f"{first.id}x", position=0)


def test_prompts_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    records = [{"prompt": prompt, "answer": "0"} for prompt in ("1+1=", "111111111+1=", "§")]
    path = write_jsonl(tmp_path / "sums.jsonl", records)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", sums(2))
    source, _ = load_prompts(
        config(path, shuffle=False, held_out_path=str(held_out)), character_tokenizer(), seed=0, max_prompt_tokens=5
    )
    assert [source.next().drop_reason for _ in range(3)] == [None, PROMPT_TOO_LONG, PROMPT_EMPTY]


def test_held_out_prompts_that_cannot_be_used_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(12))
    with caplog.at_level(logging.WARNING):
        _, held_out = load_prompts(
            config(path, held_out_path=str(path)), character_tokenizer(), seed=0, max_prompt_tokens=4
        )
    assert [group.prompt_text for group in held_out] == [f"{number}+1=" for number in range(10)]
    assert "2 of 12 held-out prompts" in caplog.text


def test_a_set_without_one_usable_prompt_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(3))
    with pytest.raises(DataError, match="every prompt is empty or longer than 2 tokens"):
        load_prompts(config(path), character_tokenizer(), seed=0, max_prompt_tokens=2)
    short = write_jsonl(tmp_path / "short.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(DataError, match=r"sums\.jsonl: every held-out prompt is empty or longer than 2 tokens"):
        load_prompts(config(short, held_out_path=str(path)), character_tokenizer(), seed=0, max_prompt_tokens=2)


def test_the_chat_template_is_rendered_around_the_prompt() -> None:
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}=>"
    encoder = PromptEncoder(character_tokenizer(chat_template=template), apply_chat_template=True, max_prompt_tokens=99)
    row = PromptRow(row=0, prompt="1+1", answer="2", columns=Columns({"source": "sums"}))
    group = encoder.group(row, group_id="0:0", position=0)
    assert group.prompt_text == "1+1"
    assert group.prompt_rendered == "<user>1+1=>"
    assert group.messages == ({"role": "user", "content": "1+1"},)
    assert group.columns["source"] == "sums"
    assert group.prompt_token_ids == tuple(CHARACTERS.index(character) + 2 for character in "<user>1+1=>")


def test_a_chat_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        PromptEncoder(character_tokenizer(), apply_chat_template=True, max_prompt_tokens=99)
