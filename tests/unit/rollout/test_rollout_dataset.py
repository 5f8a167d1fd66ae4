"""Files of every kind: what a value in them means, and which of them are read."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollout_data_files import all_rows, config, sums, write_jsonl

from rlserve.errors import DataError
from rlserve.rollout.dataset import json_lines
from rlserve.rollout.dataset.factory import open_table
from rlserve.rollout.prompt_rows import load_rows

JSON_NUMBERS = st.integers().map(str) | st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})\.[0-9]{1,30}([eE][+-]?[0-9]{1,2})?\Z")
JSON_VALUES = st.none() | st.booleans() | st.integers() | st.text("ab1.\u00e9\n", max_size=5)

JSON_ANSWERS = JSON_VALUES | st.lists(JSON_VALUES) | st.dictionaries(st.just("k"), JSON_VALUES)


def answers(path: Path, *spelled: str) -> list[Any]:
    """Answers as they come out, of answers as they are spelled in JSON."""
    path.write_text("".join(f'{{"prompt": "a", "answer": {answer}}}\n' for answer in spelled), encoding="utf-8")
    return [row.answer for row in all_rows(path)]


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("spelled", "answer"),
    [
        ("72", "72"),
        ("1.50", "1.50"),
        ("-0.0", "-0.0"),
        ("1E5", "1E5"),
        ("9223372036854775808", "9223372036854775808"),
        ("9007199254740993", "9007199254740993"),
        ("true", "true"),
        ("false", "false"),
        ("null", None),
        ('"72.0"', "72.0"),
        ('"2024-01-02"', "2024-01-02"),
        ('"2024-01-02T03:04:05Z"', "2024-01-02T03:04:05Z"),
        ('" \\u00e9\\n"', " é\n"),
        ('["3/4", 0.75, 2]', ["3/4", 0.75, 2]),
        ('{"ground_truth": "72", "n": 1.0}', {"ground_truth": "72", "n": 1.0}),
        ("[]", []),
    ],
)
def test_an_answer_means_the_same_whatever_stands_in_other_rows(tmp_path: Path, spelled: str, answer: Any) -> None:
    others = ("1.5", '"x"', "null", "[1]", '{"a": 1}', "true")
    for neighbours in ((), *((other,) for other in others), others):
        found = answers(tmp_path / "a.jsonl", *neighbours, spelled)[-1]
        assert found == answer
        assert type(found) is type(answer)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(spelled=st.lists(JSON_NUMBERS, min_size=1, max_size=5))
def test_numbers_keep_their_spelling(tmp_path: Path, spelled: list[str]) -> None:
    assert answers(tmp_path / "a.jsonl", *spelled) == spelled


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(
    records=st.lists(
        st.fixed_dictionaries({"prompt": st.just("a"), "answer": JSON_ANSWERS}),
        min_size=1,
        max_size=4,
    ),
    indent=st.sampled_from([None, 0, 2]),
)
def test_a_document_and_lines_hold_the_same(tmp_path: Path, records: list[dict[str, Any]], indent: int | None) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", records)
    (tmp_path / "a.json").write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert [(row.answer, dict(row.columns)) for row in all_rows(tmp_path / "a.json")] == [
        (row.answer, dict(row.columns)) for row in all_rows(lines)
    ]


def test_a_document_knows_the_lines_of_its_records(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n  {"prompt": "1",\n   "answer": 1},\n\n  {"prompt": "2", "answer": 2}]\n')
    assert [row.place for row in all_rows(tmp_path / "a.json")] == [f"{tmp_path}/a.json:2", f"{tmp_path}/a.json:5"]
    assert [row.prompt for row in all_rows(tmp_path / "a.json")] == ["1", "2"]


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.json", sums(3))
    assert [row.answer for row in all_rows(tmp_path / "a.json")] == ["1", "2", "3"]


def test_line_ends_blank_lines_and_byte_order_marks_make_no_difference(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "1", "answer": 1}\r\n\r\n  \n{"prompt": "2", "answer": "\xe2\x80\xa8"}'
    )
    rows = all_rows(tmp_path / "a.jsonl")
    assert [(row.prompt, row.answer, row.place.rpartition(":")[2]) for row in rows] == [
        ("1", "1", "1"),
        ("2", "\u2028", "4"),
    ]


def test_a_large_file_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_BYTES_IN_MEMORY", 10)
    path = write_jsonl(tmp_path / "a.jsonl", sums(5))
    rows = all_rows(path)
    assert [row.answer for row in rows] == ["1", "2", "3", "4", "5"]
    kept, _ = load_rows(config(path, held_out_path=str(path)))
    path.write_text(path.read_text().replace('"3"', '"7"'))
    assert kept[1].answer == "2"
    with pytest.raises(DataError, match=r"a\.jsonl:3: was changed while the run reads it"):
        kept[2]


def test_parquet_goes_by_its_own_types(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 1, 2, 3, 4, 5, 678)
    columns = {
        "bool": (pa.bool_(), True, "true"),
        "int64": (pa.int64(), 2**62 + 1, str(2**62 + 1)),
        "uint64": (pa.uint64(), 2**63, str(2**63)),
        "double": (pa.float64(), 1.5, "1.5"),
        "float32": (pa.float32(), 0.1, "0.1"),
        "decimal": (pa.decimal128(10, 2), Decimal("1.50"), "1.50"),
        "string_view": (pa.string_view(), "72", "72"),
        "large_string": (pa.large_string(), "72", "72"),
        "dictionary": (pa.dictionary(pa.int32(), pa.string()), "72", "72"),
        "timestamp": (pa.timestamp("ns"), when, "2024-01-02T03:04:05.000678"),
        "date": (pa.date32(), when.date(), "2024-01-02"),
        "list": (pa.list_(pa.string()), ["3/4", "0.75"], ["3/4", "0.75"]),
        "struct": (pa.struct({"truth": pa.string(), "n": pa.int64()}), {"truth": "x", "n": 3}, {"truth": "x", "n": 3}),
        "map": (pa.map_(pa.string(), pa.int64()), [("k", 1)], {"k": 1}),
    }
    arrays = {name: pa.array([value, None], kind) for name, (kind, value, _) in columns.items()}
    path = write_parquet(tmp_path / "a.parquet", prompt=pa.array(["a", "b"], pa.string_view()), **arrays)
    for name, (_, _, expected) in columns.items():
        first, second = all_rows(path, answer_field=name)
        assert (first.answer, second.answer) == (expected, None), name
        assert second.place == f"{path}: row 1 (counted from 0)"
    assert first.columns["int64"] == 2**62 + 1
    assert first.columns["bool"] is True


def test_verls_parquet_files_work_as_they_are(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "gsm8k.parquet",
        data_source=["openai/gsm8k"],
        prompt=[[{"role": "user", "content": "1+1="}]],
        reward_model=[{"ground_truth": "2", "style": "rule"}],
        extra_info=[{"index": 0, "split": "train"}],
    )
    (row,) = all_rows(path, apply_chat_template=True, answer_field="reward_model.ground_truth")
    assert row.prompt == ({"role": "user", "content": "1+1="},)
    assert row.answer == "2"
    assert row.columns["extra_info"] == {"index": 0, "split": "train"}
    assert row.columns["data_source"] == "openai/gsm8k"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_characters_of_a_path_stand_for_themselves(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "we[i]rd {*}? é 数据"
    folder.mkdir()
    path = folder / f"a*b[c]{suffix}"
    if suffix == ".parquet":
        write_parquet(path, prompt=["a"], answer=["1"])
    else:
        write_jsonl(path, [{"prompt": "a", "answer": "1"}])
    assert len(open_table(str(path), "train")) == 1
    assert len(open_table(str(folder), "train")) == 1


def test_a_folder_is_read_by_split_and_by_kind(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sums" / "train.jsonl", sums(3))
    write_jsonl(tmp_path / "sums" / "more" / "my_train_2.json", sums(1))
    write_jsonl(tmp_path / "sums" / "test" / "a.jsonl", sums(2))
    write_parquet(tmp_path / "sums" / "dev-00000-of-00001.parquet", prompt=["a"], answer=["1"])
    for other in ("train.csv", "README.md", ".hidden.jsonl", "train.txt"):
        (tmp_path / "sums" / other).write_text("a,b\n")
    assert [len(open_table(str(tmp_path / "sums"), split)) for split in ("train", "test", "dev")] == [4, 2, 1]
    with pytest.raises(DataError, match=r"no files of split 'other', only of 'dev', 'train', 'test'; set data\.split"):
        open_table(str(tmp_path / "sums"), "other")


def test_a_folder_without_words_for_splits_is_for_training(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", sums(3))
    write_jsonl(tmp_path / "b.jsonl", sums(1))
    (tmp_path / "c.csv").write_text("prompt,answer\n")
    table = open_table(str(tmp_path), "train")
    assert [table.place(index) for index in (0, 2, 3)] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/a.jsonl:3",
        f"{tmp_path}/b.jsonl:1",
    ]
    assert table.row(3)["prompt"] == "0+1="


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.jsonl, \.json, \.parquet file; found: nothing"):
        open_table(str(tmp_path), "train")
    for name in ("a.csv", "b.csv", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"found: 2 × \.csv, 1 × \.txt"):
        open_table(str(tmp_path), "train")


def test_a_copy_of_a_repository_with_several_sets_is_not_taken_for_one(tmp_path: Path) -> None:
    for name in ("main", "socratic"):
        write_jsonl(tmp_path / name / "train-00000-of-00001.jsonl", sums(2))
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: main\n- config_name: socratic\n---\n# Sums\n")
    with pytest.raises(DataError, match=r"holds 2 data sets \(main, socratic\), .*; set data\.path to the folder"):
        open_table(str(tmp_path), "train")
    assert len(open_table(str(tmp_path / "main"), "train")) == 2
    for card in ("---\nconfigs:\n- config_name: main\n---\n", "# Sums\n---\n", "---\na: [\n---\n"):
        (tmp_path / "README.md").write_text(card)
        assert len(open_table(str(tmp_path), "train")) == 4


def test_what_save_to_disk_wrote_is_loaded(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"prompt": "1+1=", "answer": 2}, {"prompt": "2+2=", "answer": 4}])
    data.select([1]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    assert [row.answer for row in all_rows(tmp_path / "one")] == ["4"]
    assert len(open_table(str(tmp_path / "splits"), "train")) == 2
    with pytest.raises(DataError, match="has no split 'test', only 'train'"):
        open_table(str(tmp_path / "splits"), "test")


def test_a_name_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, subset: str | None, *, split: str) -> Any:
        asked.append((path, subset, split))
        return datasets.Dataset.from_list(sums(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert open_table("openai/gsm8k:main", "test").row(1)["answer"] == "2"
    assert asked == [("openai/gsm8k", "main", "test")]

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"openai/gsm8k: cannot be loaded from the hub \(split 'train'\): no network"):
        open_table("openai/gsm8k", "train")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "./nowhere", "/nowhere/at/all"])
def test_a_path_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(DataError, match=f"{path}: no such file or folder"):
        open_table(path, "train")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[\n{"prompt": "1"},\n{"prompt" "2"}\n]', r"a\.json:3: not valid JSON: .* at column 11"),
        ("a.json", '[\n{"prompt": "1"}\n{"prompt": "2"}\n]', r"a\.json:3: not valid JSON: expecting ',' or '\]'"),
        ("a.json", '[\n{"prompt": "1"}\n', r"a\.json:3: not valid JSON"),
        ("a.json", '[{"prompt": "1"}]\n{}', r"a\.json:2: not valid JSON: something follows the list"),
        ("a.json", '[\n{"prompt": 1, "prompt": "1"}]', r"a\.json:2: has 'prompt' twice"),
        ("a.json", "[\n" + "[" * 100_000, r"a\.json:2: not valid JSON: nested too deeply"),
        ("a.json", "[]", r"a\.json: holds no rows"),
        ("a.jsonl", "\n\n", r"a\.jsonl: holds no rows"),
        ("a.csv", "prompt,answer\n", r"a\.csv: not a \.jsonl, \.json, \.parquet file"),
        ("a.parquet", "no parquet", r"a\.parquet: not a Parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_table(str(tmp_path / name), "train")


def test_a_document_of_other_bytes_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[\n{"prompt": "1"},\n{"prompt": "\xff"}]')
    with pytest.raises(DataError, match=r"a\.json:3: not valid UTF-8: byte 0xff after 12 bytes"):
        open_table(str(tmp_path / "a.json"), "train")
