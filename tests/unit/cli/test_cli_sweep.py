"""``rlserve sweep``: which runs there are, that all are checked first, and what ends a sweep."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.cli import main
from rlserve.cli.sweep import SweptRun, run_in_turn
from rlserve.config import load
from rlserve.config.sweeps import expand_sweep
from rlserve.errors import UserError


def test_every_combination_is_a_run_and_the_last_changes_fastest() -> None:
    words = ["trainer.learning_rate=1e-5,1e-6", "name='a,b'", "seed=range(2)", "pool.slots=[{type: cpu, count: 2}]"]
    assert [combination[0::2] for combination in expand_sweep(words)] == [
        ("trainer.learning_rate=1e-05", "seed=0"),
        ("trainer.learning_rate=1e-05", "seed=1"),
        ("trainer.learning_rate=1e-06", "seed=0"),
        ("trainer.learning_rate=1e-06", "seed=1"),
    ]
    assert {combination[1::2] for combination in expand_sweep(words)} == {(words[1], words[3])}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_there_are_as_many_runs_as_combinations(numbers: list[int]) -> None:
    words = [f"key_{place}={','.join(map(str, range(number)))}" for place, number in enumerate(numbers)]
    if set(numbers) == {1}:
        with pytest.raises(UserError, match="several values"):
            expand_sweep(words)
        return
    runs = expand_sweep(words)
    assert len(runs) == len(set(runs)) == prod(numbers)


def test_runs_are_numbered_and_a_dry_run_starts_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "conf/rlhf.yaml", "seed=3,4", "name=mine", "--dry-run"]) == 0
    assert capsys.readouterr().out == "mine-1  seed=3\nmine-2  seed=4\n"
    assert not (place / "runs").exists()


def test_all_are_checked_before_the_first_begins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "conf/rlhf.yaml", "seed=1,-1"]) == 2
    assert "seed: must be at least 0, got -1" in capsys.readouterr().err
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("exit_codes", "num_run", "returned"),
    [([0, 0, 0], 3, 0), ([0, 1, 0], 3, 1), ([2, 0, 1], 3, 2), ([0, 143, 0], 2, 143), ([0, -9, 0], 2, -9)],
)
def test_a_failure_lets_the_others_run_and_a_signal_does_not(
    exit_codes: list[int], num_run: int, returned: int
) -> None:
    loaded = load("conf/rlhf.yaml", ["name=any"])
    runs = [SweptRun(overrides=(f"seed={code}",), loaded=loaded) for code in exit_codes]
    begun: list[SweptRun] = []

    def launch(each: SweptRun) -> int:
        begun.append(each)
        return exit_codes[len(begun) - 1]

    assert run_in_turn(runs, launch) == returned
    assert begun == runs[:num_run]
