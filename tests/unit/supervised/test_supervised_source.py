"""The order of batches, the number of steps of an epoch, and what a run is not resumed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from supervised_data import load, sums, write

from rlserve.errors import DataError
from rlserve.supervised.source import SupervisedSource


def names(source: SupervisedSource, num_batches: int) -> list[str]:
    """Of the samples of the next batches, which are trained on."""
    found: list[str] = []
    for _ in range(num_batches):
        found += source.next().sample_ids
        source.advance()
    return found


def test_held_out_and_training_rows_share_none_and_leave_none_out(tmp_path: Path) -> None:
    source = load(write(tmp_path / "a.jsonl", sums(20)), num_held_out=4)
    held_out = {name.split(":")[1] for name in source.held_out().sample_ids}
    trained = {name.split(":")[1] for name in names(source, 4)}
    assert (len(held_out), len(trained)) == (4, 16)
    assert held_out | trained == {f"{row}/0" for row in range(20)}


def test_a_batch_goes_on_with_the_next_epoch_where_one_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sums(6))
    found = names(load(path, held_out_path=str(path)), 3)
    assert [name.split(":")[0] for name in found] == ["0"] * 6 + ["1"] * 6
    assert sorted(found[:6]) == [f"0:{row}/0" for row in range(6)]
    assert [name[2:] for name in found[:6]] != [name[2:] for name in found[6:]], "each epoch has an order of its own"


@pytest.mark.parametrize(("num_rows", "num_epochs", "num_steps"), [(8, 1, 2), (9, 1, 3), (9, 2, 5), (3, 1, 1)])
def test_epochs_make_whole_batches(tmp_path: Path, num_rows: int, num_epochs: int, num_steps: int) -> None:
    path = write(tmp_path / "a.jsonl", sums(num_rows))
    assert load(path, held_out_path=str(path)).num_steps(num_epochs) == num_steps


def test_the_next_batch_is_the_same_until_it_was_trained_on(tmp_path: Path) -> None:
    source = load(write(tmp_path / "a.jsonl", sums(20)))
    first = source.next().sample_ids
    assert source.next().sample_ids == first
    source.advance()
    assert not set(source.next().sample_ids) & set(first)


@pytest.mark.parametrize("num_before", [0, 1, 4, 7])
def test_a_restored_source_goes_on_where_it_stopped(tmp_path: Path, num_before: int) -> None:
    path = write(tmp_path / "a.jsonl", sums(20))
    source = load(path)
    names(source, num_before)
    saved = json.loads(json.dumps(source.snapshot()))
    restored = load(path)
    restored.restore(saved)
    assert names(restored, 5) == names(source, 5)


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        (sums(15), {}, "18 of .* were used, and now there are 14"),
        ([*sums(19), {"prompt": "19+1=", "completion": "21"}], {}, r"row at .*:20 is not what it was"),
        (sums(20), {"seed": 1}, "seed was 0 and is now 1"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "a.jsonl", sums(20))
    saved = load(path).snapshot()
    write(path, rows)
    with pytest.raises(DataError, match=problem):
        load(path, **options).restore(saved)
