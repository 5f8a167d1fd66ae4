"""A server's replicas on a virtual clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlserve.cli.simulate_server import run
from rlserve.engine.config import EngineConfig
from rlserve.errors import UserError
from rlserve.rollout.workload.courses import parse_course
from rlserve.roofline.accelerators import slot_type
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import model_shape
from rlserve.serving.config import RoutingConfig
from rlserve.serving.scaling.config import ScalingConfig, TargetsConfig
from rlserve.serving.scaling.targets import TargetTracking
from rlserve.simulate.server.load import ServedRequest, draw_requests, read_requests
from rlserve.simulate.server.simulation import ServerResult, ServerScenario, simulate_server
from rlserve.simulate.server.study import Deadlines, study_server

COSTS, H100 = Costs(shape=model_shape("8B")), slot_type("H100")
ENGINE = EngineConfig(max_num_sequences=4, num_blocks=4096)
EAGER = ScalingConfig(
    enabled=True,
    targets=TargetsConfig(load=0.5),
    scale_up_window_s=0,
    scale_down_window_s=20,
    scale_up_cooldown_s=0,
    scale_down_cooldown_s=0,
)


def scenario_of(requests: Sequence[ServedRequest], num_replicas: int = 1, most: int = 1) -> ServerScenario:
    return ServerScenario(
        requests=requests,
        costs=COSTS,
        slot_type=H100,
        engine=ENGINE,
        routing=RoutingConfig(),
        num_replicas=num_replicas,
        most=most,
        start_s=5.0,
        interval_s=1.0,
    )


def at(*times_s: float, num_prompt_tokens: int = 100, num_answer_tokens: int = 50) -> list[ServedRequest]:
    return [
        ServedRequest(arrival_s=time_s, num_prompt_tokens=num_prompt_tokens, num_answer_tokens=num_answer_tokens)
        for time_s in times_s
    ]


def check(result: ServerResult) -> None:
    """All is answered, in order, and paid for."""
    for served in result.served:
        assert served.first_token_s is not None
        assert served.end_s is not None
        assert served.request.arrival_s < served.first_token_s <= served.end_s <= result.end_s


def test_one_request_takes_what_the_roofline_gives() -> None:
    result = simulate_server(scenario_of(at(3.0)), None)
    check(result)
    (served,) = result.served
    prefill_s = COSTS.engine_step_s(H100, num_samples=0, num_kv_tokens=100, num_prefill_tokens=100)
    assert served.time_to_first_token_s == pytest.approx(prefill_s)
    decode_s = sum(COSTS.decode_step_s(H100, 1, 100 + token) for token in range(49))
    assert served.end_s == pytest.approx(3.0 + prefill_s + decode_s)
    assert result.replica_s == pytest.approx(result.end_s, abs=1.0)


def test_no_more_samples_than_an_engine_holds() -> None:
    result = simulate_server(scenario_of(at(*[0.0] * 9)), None)
    check(result)
    firsts = sorted(served.first_token_s or 0.0 for served in result.served)
    ends = sorted(served.end_s or 0.0 for served in result.served)
    assert firsts[4] > ends[0]
    assert firsts[8] > ends[4]


def test_load_starts_replicas_which_take_their_time_and_its_end_drains_them() -> None:
    requests = at(*[second / 20 for second in range(600)], *[30.0 + 10 * number for number in range(6)])
    scenario = scenario_of(sorted(requests, key=lambda each: each.arrival_s), most=3)
    scaled = simulate_server(scenario, TargetTracking(EAGER))
    check(scaled)
    numbers = [change.num_wanted for change in scaled.changes]
    assert max(numbers) == 3
    assert numbers[0] == numbers[-1] == 1
    alone = simulate_server(replace(scenario, most=1), None)
    all_three = simulate_server(replace(scenario, num_replicas=3), None)
    assert alone.replica_s < scaled.replica_s < all_three.replica_s
    deadlines = Deadlines(time_to_first_token_s=1.0, time_per_output_token_s=1.0)
    rows = study_server(scenario, TargetTracking(EAGER), deadlines, num_gpus=2, price=3.0, fixed=(1, 3))
    assert [row.name for row in rows] == ["scaling", "1 fixed", "3 fixed"]
    assert rows[1].attained_share < rows[0].attained_share <= rows[2].attained_share
    assert rows[0].gpu_hours == pytest.approx(2 * scaled.replica_s / 3600)
    assert rows[0].cost == pytest.approx(3.0 * rows[0].gpu_hours)


def test_equal_scenarios_give_equal_results() -> None:
    requests = draw_requests(parse_course("1/6x2"), 60.0, num_prompt_tokens=64, num_answer_tokens=40, seed=3)
    scenario = scenario_of(requests, most=2)
    results = [simulate_server(scenario, TargetTracking(EAGER)) for _ in range(2)]
    assert results[0] == results[1]
    assert 100 < len(requests) < 320
    early = sum(request.arrival_s < 30 for request in requests)
    assert early < len(requests) - early


def test_traces_are_read_as_the_benchmark_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 5000, "input_length": 7, "output_length": 3},
        {"timestamp": 4000, "input_length": 9, "output_length": 1},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_requests(path) == [
        *at(0.0, num_prompt_tokens=9, num_answer_tokens=1),
        *at(1.0, num_prompt_tokens=7, num_answer_tokens=3),
    ]
    path.write_text('{"timestamp": 1}')
    with pytest.raises(UserError, match="line 1: timestamp, input_length and output_length are wanted"):
        read_requests(path)
    path.write_text("")
    with pytest.raises(UserError, match="no requests"):
        read_requests(path)


def test_the_command_shows_scaling_beside_fixed_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    overrides = ["scaling.enabled=true", "scaling.max_replicas=2", "engine.max_num_sequences=16"]
    options = ["--rate", "2", "--hours", "0.02", "--answer-tokens", "30", "--price", "2", "--json", str(out)]
    assert run(["conf/serve.yaml", *overrides, *options]) == 0
    table = capsys.readouterr().out
    assert "scaling" in table
    rows = json.loads(out.read_text())
    assert [row["name"] for row in rows] == ["scaling", "1 fixed", "2 fixed"]
    assert rows[0]["changes"][0] == {"time_s": 0.0, "num_wanted": 1, "reason": "the beginning"}
    assert all(row["attained_share"] == 1 for row in rows)
