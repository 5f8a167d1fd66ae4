from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import make_summary
from rich.console import Console

from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.summary import print_summary, read_summary, summary_rows, write_summary

FIELDS = {
    "held_out_before",
    "held_out_after",
    "num_steps",
    "groups_admitted",
    "groups_trained",
    "groups_dropped",
    "moves_to_rollout",
    "moves_to_train",
    "engine_restarts",
    "worker_failures",
    "final_weight_version",
    "seconds_to_first_step",
    "seconds_total",
    "rollout_tokens_per_s",
    "trained_tokens_per_s",
    "max_staleness",
    "mean_abs_log_prob_difference",
    "loop_s",
    "cost",
    "overrun_share",
    "host_was_bottleneck",
    "learns_from_data",
    "paced_activities",
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "a-run-with-a-name-so-long-that-its-path-does-not-fit-the-width-of-a-terminal")


@pytest.mark.parametrize("held_out_after", [0.97, None])
def test_summary_reads_back_and_has_exactly_the_promised_fields(
    folder: RunFolder, held_out_after: float | None
) -> None:
    summary = make_summary(held_out_after=held_out_after)
    assert read_summary(folder) is None
    write_summary(folder, summary)
    assert read_summary(folder) == summary
    assert json.loads(folder.summary_file.read_text()).keys() == FIELDS


def test_the_summary_says_what_the_run_cost_and_how_much_of_it_was_useful() -> None:
    def row(money: float | None) -> str:
        amount = {"gpu_hours": 2.0, "money": money}
        cost = {
            "prices": {"currency": "EUR"},
            "total": amount,
            "useful_share": 0.6,
            "per": {"1m_trained_tokens": amount},
        }
        return dict(summary_rows(make_summary(cost=cost)))["cost"]

    assert row(None) == "2 GPU-hours, 60% of it useful; 2 GPU-hours for 1M tokens trained"
    assert row(7.5).startswith("2 GPU-hours, 7.5 EUR, 60% of it useful")
    assert "cost" not in dict(summary_rows(make_summary()))


def test_the_summary_of_a_paced_run_says_whether_it_counts() -> None:
    late = dict(summary_rows(make_summary(overrun_share=0.041, host_was_bottleneck=True)))["paced"]
    assert late.startswith("4.1% of the modelled time late: the host was the bottleneck; not counted")
    fine = dict(summary_rows(make_summary(overrun_share=0.004, host_was_bottleneck=False)))["paced"]
    assert fine.startswith("0.4% of the modelled time late: the host kept up")
    assert "paced" not in dict(summary_rows(make_summary()))


def test_closing_table_has_the_numbers_and_places_that_can_be_copied(folder: RunFolder) -> None:
    offline_run = folder.path / "wandb" / "offline-run-1-abc"
    offline_run.mkdir(parents=True)
    folder.report_html.touch()
    console = Console(file=io.StringIO(), width=80)
    print_summary(console, make_summary(), folder)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("0.410 before, 0.970 after", "8 prompt_too_long", "3 to rollout, 2 to train", "4:07", "2.5e-06"):
        assert part in text
    lines = [line.strip() for line in text.splitlines()]
    assert f"report: {folder.report_html}" in lines
    assert f"upload to wandb: wandb sync {offline_run}" in lines


def test_what_was_not_measured_is_a_dash(folder: RunFolder) -> None:
    console = Console(file=io.StringIO(), width=120)
    unmeasured = make_summary(
        held_out_after=None, seconds_to_first_step=None, mean_abs_log_prob_difference=None, groups_dropped={}
    )
    print_summary(console, unmeasured, folder)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("0.410 before, - after", "first step after -", "- mean absolute", "dropped: none"):
        assert part in text
