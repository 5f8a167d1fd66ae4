from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import DataError
from rlserve.tracking import jsonl
from rlserve.tracking.jsonl import (
    JsonLinesWriter,
    JsonlSink,
    read_json_lines,
    read_last_json_lines,
    to_json_line,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3))
def test_a_record_is_one_line_and_reads_back(record: dict[str, object]) -> None:
    line = to_json_line(record)
    assert line.count("\n") == 1
    assert json.loads(line) == record


def test_numbers_that_json_does_not_know_become_null() -> None:
    line = to_json_line({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}})
    assert json.loads(line) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_every_line_is_on_disk_before_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    for step in (1, 2):
        sink.log(step, {"x": step / 2})
        assert read_json_lines(path)[-1] == {"step": step, "x": step / 2}
    sink.close(0)


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_line_broken_off_by_a_kill_is_passed_over_and_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "lines.jsonl"
    whole = '{"step": 1}\n{"step": 2}\n{"step": "é"}\n'.encode()
    path.write_bytes(whole[:-cut])
    before = read_json_lines(path)
    assert before == [{"step": 1}, {"step": 2}]
    writer = JsonLinesWriter(path)
    writer.write({"step": 3})
    writer.close()
    assert read_json_lines(path) == [*before, {"step": 3}]


def test_lines_of_a_kind_are_read_however_long_ago_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f'{{"event": "{"b" if n % 5 == 0 else "a"}", "n": {n}}}\n' for n in range(20)))
    whole = read_json_lines(path)
    for end_bytes in (1, 30, 90, 10_000):
        monkeypatch.setattr(jsonl, "END_BYTES", end_bytes)
        tail = read_last_json_lines(path)
        assert tail == whole[len(whole) - len(tail) :]
        early = [line for line in whole[: len(whole) - len(tail)] if line["event"] == "b"]
        assert read_last_json_lines(path, also=('{"event": "b"',)) == [*early, *tail]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"lines\.jsonl:2: is not JSON"):
        read_json_lines(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"lines\.jsonl:1: must be a JSON object"):
        read_json_lines(path)


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "absent.jsonl") == []


@given(num_steps=st.integers(0, 8), resumed_step=st.integers(0, 10))
def test_after_a_resume_every_step_stands_in_the_file_once(
    tmp_path_factory: pytest.TempPathFactory, num_steps: int, resumed_step: int
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    first = JsonlSink(path)
    for step in range(num_steps):
        first.log(step, {"process": 1.0})
    first.close(130)
    second = JsonlSink(path, resumed_step)
    for step in range(resumed_step, 12):
        second.log(step, {"process": 2.0})
    second.close(0)
    records = [(record["step"], record["process"]) for record in read_json_lines(path)]
    kept = [(step, 1.0) for step in range(min(num_steps, resumed_step))]
    assert records == kept + [(step, 2.0) for step in range(resumed_step, 12)]
