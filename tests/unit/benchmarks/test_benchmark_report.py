"""Ratios, table and JSON of the engine benchmark."""

from __future__ import annotations

import io
import json

import pytest
from engine_cases import SMOKE
from engine_report import CaseResult, ratios, report, table
from engine_rounds import Measurement, PeerResult
from rich.console import Console


def measured(peer: str, *wall_s: float, peak_rss_bytes: int = 2**20) -> PeerResult:
    """A peer that made 100 tokens in each of the given times, and had both of two processors all the time."""
    rounds = [
        Measurement(wall_s=seconds, cpu_s=2 * seconds, num_output_tokens=100, first_token_s=(0.5, 1.5, 4.0))
        for seconds in wall_s
    ]
    return PeerResult(peer=peer, rounds=rounds, peak_rss_bytes=peak_rss_bytes)


def results() -> list[CaseResult]:
    ours = measured("rlserve", 1.0, 2.0, 1.0)
    missing = PeerResult(peer="vllm", missing="not installed: no Python was named for it\nsecond line")
    return [CaseResult(case=SMOKE, peers=[ours, measured("hf", 3.0, 2.0, 2.0), missing], load_average=0.5)]


def test_ratios_compare_within_a_round() -> None:
    assert ratios(measured("rlserve", 1.0, 2.0), measured("hf", 3.0, 1.0)) == [3.0, 0.5]


def test_a_round_that_the_peer_did_not_finish_has_no_ratio() -> None:
    assert ratios(measured("rlserve", 1.0, 2.0), measured("hf", 4.0)) == [4.0]


def test_table_has_a_row_a_peer_with_medians_and_says_who_is_missing() -> None:
    output = io.StringIO()
    Console(file=output, width=140).print(table(results()))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["smoke", "rlserve", "100", "", "", "50", "", "1", "2.00 / 1.50"],
        ["", "hf", "50", "2.00", "3.00 1.00 2.00", "25", "2.00", "1", "2.00 / 1.50"],
        ["", "vllm", "missing", "", "", "", "", "", ""],
    ]


def test_report_is_json_with_every_round() -> None:
    content = json.loads(json.dumps(report(results(), num_threads=2)))
    ours, hf, vllm = content["cases"][0]["peers"]
    assert content["num_threads"] == 2
    assert content["machine"]["cpu"]
    assert content["cases"][0]["case"]["name"] == "smoke"
    assert ours["tokens_per_s"] == [100.0, 50.0, 100.0]
    assert hf["ratios_of_ours"] == [3.0, 1.0, 2.0]
    assert hf["median_ratio_of_ours"] == 2.0
    assert hf["tokens_per_cpu_s"] == pytest.approx([100 / 6, 25.0, 25.0])
    assert hf["median_cpu_ratio_of_ours"] == 2.0
    assert hf["first_token"] == {"mean_s": 2.0, "median_s": 1.5}
    assert vllm["missing"].startswith("not installed")
    assert vllm["median_ratio_of_ours"] is None


def test_first_token_times_are_unknown_where_a_peer_does_not_tell() -> None:
    silent = PeerResult(
        peer="rlserve", rounds=[Measurement(wall_s=1.0, cpu_s=1.0, num_output_tokens=1, first_token_s=())]
    )
    content = report([CaseResult(case=SMOKE, peers=[silent], load_average=0.0)], num_threads=1)
    assert content["cases"][0]["peers"][0]["first_token"] is None


def test_tokens_per_second() -> None:
    assert measured("hf", 4.0).rounds[0].tokens_per_s == pytest.approx(25.0)
