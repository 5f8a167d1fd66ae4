"""``rlserve cost``: of one run, of two, in money, and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import begin_run, finished_run, slot_event

from rlserve.cli import main
from rlserve.tracking.events import StageEvent, StepEvent, TokensEvent
from rlserve.tracking.tracker import Tracker

PRICES = "currency: EUR\ndate: 2026-11-01\nper_hour: {cpu-a: 36, cpu-b: 18}\n"


def do_priced_steps(tracker: Tracker, number: int, step_s: float, *, begin_s: float = 1.0) -> float:
    """Steps of a trainer that waits for half of the time."""
    tracker.record(StageEvent(time_s=begin_s, stage="training"))
    now_s = begin_s
    for step in range(1, number + 1):
        tracker.record(TokensEvent(time_s=now_s + step_s, step=step, num_trained=50))
        tracker.record(
            StepEvent(
                time_s=now_s + step_s,
                step=step,
                begin_s=now_s,
                work_begin_s=now_s + step_s / 2,
                work_end_s=now_s + step_s,
                slot_ids=("cpu-a/0",),
                num_groups=4,
                num_tokens=100,
            )
        )
        now_s += step_s
    return now_s


def make_run(place: Path, name: str, number: int, step_s: float) -> None:
    _, tracker = begin_run(place / "runs", name)
    do_priced_steps(tracker, number, step_s)
    tracker.close(0)


def test_what_a_run_cost_by_use_and_account_and_for_one_of_anything(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(place, "one", 10, 2.0)
    (place / "prices.yaml").write_text(PRICES)
    assert main(["cost", "one", "--prices", "prices.yaml"]) == 0
    text = capsys.readouterr().out
    for part in ("one (finished)", "EUR", "cpu-a", "training step", "bubble", "10 steps", "1,000 tokens"):
        assert part in text
    assert main(["cost", "one", "--prices", "prices.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == {"gpu_hours": pytest.approx(42 / 3600), "money": pytest.approx(21 * 0.01 + 21 * 0.005)}
    assert found["uses"]["training"] == {"gpu_hours": pytest.approx(10 / 3600), "money": pytest.approx(0.1)}
    assert sum(use["gpu_hours"] for use in found["uses"].values()) == pytest.approx(42 / 3600)


def test_a_run_that_goes_on_and_one_without_a_step_have_costs_too(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(place / "runs", "done")
    _, tracker = begin_run(place / "runs", "going")
    tracker.record(slot_event(5.0, "cpu-b/0", "rollout"))
    assert main(["cost", "going"]) == 0
    assert "in flight" in capsys.readouterr().out
    assert main(["cost", "done", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["per"]["step"] is None


def test_a_type_without_a_price_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(place, "one", 3, 2.0)
    (place / "prices.yaml").write_text(PRICES.replace("cpu-b: 18", "H100: 3"))
    assert main(["cost", "one", "--prices", "prices.yaml"]) == 0
    assert "no price is given for cpu-b" in capsys.readouterr().out


def test_a_change_that_paid(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(place, "before", 20, 2.0)
    make_run(place, "after", 20, 1.5)
    assert main(["cost", "before", "after"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "-25.0% (-25.0% to -25.0%): the change saved 0.005278 GPU-hours over the second run's tokens" in text
    assert main(["cost", "before", "after", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "GPU-hours"
    assert found["per_1m_trained_tokens"]["change"]["value"] == pytest.approx(-0.25)
    assert found["per_1m_trained_tokens"]["is_distinguishable"]


def test_runs_that_are_too_short_or_too_many_to_compare(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(place, "before", 5, 2.0)
    make_run(place, "after", 20, 1.5)
    assert main(["cost", "before", "after"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "cannot be told: each run needs 8 steps after its first, and one has 4" in text
    assert main(["cost", "before", "after", "after"]) == 2
    assert "one run, or two to compare, not 3" in capsys.readouterr().err
