"""What the comparison of real and simulated runs says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation_validation import CASES, MIN_CASES, Comparison, Side, checks_of, line, rate

GOOD = Comparison(
    name="a",
    real=Side(groups_per_s=1.0, wait_share=0.5, num_moves=1),
    simulated=Side(groups_per_s=1.04, wait_share=0.5, num_moves=2),
    overrun_share=0.0,
    counts=True,
)


def test_the_first_step_is_not_counted() -> None:
    assert rate([100.0, 110.0, 120.0], 5) == pytest.approx(0.5)


def test_a_run_beyond_the_bar_is_missed_and_one_of_a_slow_host_is_not_counted() -> None:
    off = replace(GOOD, name="b", simulated=replace(GOOD.simulated, groups_per_s=0.94))
    late = replace(off, name="c", counts=False)
    checks = checks_of([GOOD, off, late])
    assert [check["met"] for check in checks] == [True, False, False]
    assert checks[-1]["value"] == 2
    assert [line(each).split()[-1] for each in (GOOD, off, late)] == ["ok", "MISSED", "counted"]


def test_there_are_enough_cases_and_each_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= MIN_CASES
