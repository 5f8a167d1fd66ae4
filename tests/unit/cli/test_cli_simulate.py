"""``rlserve simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlserve.cli import main

SMALL = (
    "pool=h100_h200",
    "rollout.prompts_per_step=8",
    "rollout.max_tokens=4096",
    "manager=queue_threshold",
    "manager.queue_high=4",
    "manager.queue_low=2",
)
QUICK = ("--hours", "0.05", "--seeds", "2", "--jobs", "1")


def test_policies_are_compared_with_the_oracle_and_the_best_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "result.json"
    arguments = ["simulate", "conf/rlhf.yaml", *SMALL, *QUICK, "--keep", "1..0.4", "--json", str(written)]
    arguments += ["--failures-per-hour", "60", "--notices-per-hour", "30"]
    assert main([*arguments, "--policy", "static,queue_threshold"]) == 0
    result = json.loads(written.read_text())
    best = f"best static ({result['best_static_num_rollout']})"
    assert set(result["policies"]) == {best, "static", "queue_threshold"}
    assert result["policies"][best]["of_best_static"]["mean"] == pytest.approx(1.0)
    assert max(result["static_groups_per_s"].values()) == pytest.approx(
        result["policies"][best]["groups_per_s"]["mean"]
    )
    shown = capsys.readouterr().out
    assert "queue_threshold" in shown
    assert "fluid oracle" in shown


def test_tokens_have_a_price_where_all_slots_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices, written = tmp_path / "prices.yaml", tmp_path / "result.json"
    found = {}
    for per_hour in ("{H100: 2, H200: 2}", "{H100: 4, H200: 4}", "{H100: 2}"):
        prices.write_text(f"currency: USD\ndate: 2026-11-01\nper_hour: {per_hour}\n")
        arguments = [*SMALL, f"cost.prices={prices}", *QUICK, "--json", str(written)]
        assert main(["simulate", "conf/rlhf.yaml", *arguments]) == 0
        result = json.loads(written.read_text())
        cost = next(iter(result["policies"].values()))["cost_per_million"]["mean"]
        found[per_hour] = (result["cost_unit"], cost)
        assert f"{result['cost_unit']}/1M" in capsys.readouterr().out
    hours = found["{H100: 2}"]
    assert hours[0] == "GPU-hours"
    assert found["{H100: 2, H200: 2}"] == ("USD", pytest.approx(2 * hours[1]))
    assert found["{H100: 4, H200: 4}"] == ("USD", pytest.approx(4 * hours[1]))


def test_a_run_that_generates_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "conf/sft.yaml"]) == 2
    assert "algorithm.name=sft generates nothing" in capsys.readouterr().err


def test_a_trace_gives_the_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "lengths.jsonl"
    trace.write_text(f"{[1500] * 8}\n" * 3)
    written = tmp_path / "result.json"
    assert main(["simulate", "conf/rlhf.yaml", *SMALL, *QUICK, "--trace", str(trace), "--json", str(written)]) == 0
    best = next(iter(json.loads(written.read_text())["policies"].values()))
    assert best["tokens_per_s"]["mean"] == pytest.approx(best["groups_per_s"]["mean"] * 8 * (1500 + 256))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--keep", "often"], "'often' is no schedule"),
        (["--policy", "magic"], "no policy is called 'magic'"),
        (["--model", "9B"], "no model size is called '9B'"),
        (["--trace", "no/such.jsonl"], "no/such.jsonl"),
        (["--costs", "no/such/run"], "no/such/run"),
        (["pool=auto"], "pool.slots"),
        (["pool.placement=colocated"], "cannot be simulated"),
    ],
)
def test_what_the_user_can_mend_is_said_without_a_traceback(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "conf/rlhf.yaml", *SMALL, *QUICK, *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_split_is_suggested_and_the_timeline_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "timeline.png"
    written = tmp_path / "result.json"
    arguments = ["simulate", "conf/rlhf.yaml", *SMALL, *QUICK, "--suggest", "--timeline", str(picture)]
    assert main([*arguments, "--json", str(written)]) == 0
    best = json.loads(written.read_text())["best_static_num_rollout"]
    shown = capsys.readouterr().out
    assert f"pool.num_initial_rollout={best} " in shown
    assert "manager.cooldown_s=" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_timeline_of_no_known_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "conf/rlhf.yaml", *SMALL, *QUICK, "--timeline", str(tmp_path / "timeline.docx")]
    assert main(arguments) == 2
    assert "timeline.docx" in capsys.readouterr().err
