"""Alerts on servers and on runs: each fires when it should, and none while all is well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from monitoring_files import ALERTS, NEEDS_PROMTOOL, RUN_ALERTS, check_alerts, fires, rules


@dataclass(frozen=True, kw_only=True)
class Alerts:
    """What becomes of the alerts of a file; series have one value a minute."""

    path: Path
    after_min: int
    well: Mapping[str, str]
    """Series while all is well."""
    cases: Mapping[str, Mapping[str, str]]
    """By the name of an alert, the series that differ from ``well`` when it is firing after ``after_min``."""


ENGINE = 'job="rlserve",instance="a",model_name="m",engine="0"'
SERVER = 'job="rlserve",instance="a"'
SERVER_CASES: Mapping[str, dict[str, str]] = {
    "RlserveServerDown": {f"up{{{SERVER}}}": "0x20"},
    "RlserveNoReplicaReady": {f"rlserve:ready_replicas{{{SERVER}}}": "0x20"},
    "RlserveReplicaLost": {f"rlserve:lost_replicas_total{{{SERVER}}}": "0x10 1x10"},
    "RlserveStandstill": {
        f"vllm:num_requests_running{{{ENGINE}}}": "3x20",
        f"vllm:generation_tokens_total{{{ENGINE}}}": "70x20",
    },
    "RlserveRefusing": {f'vllm:admission_rejections_total{{{SERVER},model_name="m",reason="load"}}': "0+5x20"},
    "RlserveAnswersShortened": {f"rlserve:degradation_level{{{SERVER}}}": "1x20"},
    "RlserveServerErrors": {
        f'http_requests_total{{{SERVER},status="200"}}': "0+90x20",
        f'http_requests_total{{{SERVER},status="503"}}': "0+10x20",
    },
    "RlserveSlowFirstToken": {
        f'vllm:time_to_first_token_seconds_bucket{{{SERVER},model_name="m",le="0.1"}}': "0x20",
        f'vllm:time_to_first_token_seconds_bucket{{{SERVER},model_name="m",le="2.5"}}': "0+1x20",
        f'vllm:time_to_first_token_seconds_bucket{{{SERVER},model_name="m",le="+Inf"}}': "0+9x20",
    },
    "RlserveSlowTokens": {
        f'vllm:inter_token_latency_seconds_bucket{{{ENGINE},le="0.1"}}': "0x20",
        f'vllm:inter_token_latency_seconds_bucket{{{ENGINE},le="0.3"}}': "0+1x20",
        f'vllm:inter_token_latency_seconds_bucket{{{ENGINE},le="+Inf"}}': "0+9x20",
    },
    "RlserveQueueGrows": {
        f"vllm:num_requests_running{{{ENGINE}}}": "3x20",
        f"vllm:num_requests_waiting{{{ENGINE}}}": "9x20",
    },
    "RlserveCacheTooSmall": {f"vllm:num_preemptions_total{{{ENGINE}}}": "0+60x20"},
    "RlserveManyRefusedForText": {f'rlserve:refused_total{{{SERVER},source="prompt",kind="a"}}': "0+30x20"},
    "RlserveManyBeyondLimits": {f'http_requests_total{{{SERVER},status="429"}}': "0+30x20"},
}
SERVER_WELL = {
    f"up{{{SERVER}}}": "1x20",
    f"rlserve:ready_replicas{{{SERVER}}}": "2x20",
    f"rlserve:lost_replicas_total{{{SERVER}}}": "0x20",
    f"rlserve:degradation_level{{{SERVER}}}": "0x20",
    f"vllm:num_requests_running{{{ENGINE}}}": "3x20",
    f"vllm:num_requests_waiting{{{ENGINE}}}": "1x20",
    f"vllm:generation_tokens_total{{{ENGINE}}}": "0+500x20",
    f"vllm:num_preemptions_total{{{ENGINE}}}": "0+1x20",
    f'vllm:admission_rejections_total{{{SERVER},model_name="m",reason="load"}}': "4x20",
    f'http_requests_total{{{SERVER},status="200"}}': "0+90x20",
    f'http_requests_total{{{SERVER},status="429"}}': "0+1x20",
    f'rlserve:refused_total{{{SERVER},source="prompt",kind="a"}}': "0+1x20",
    f'vllm:time_to_first_token_seconds_bucket{{{SERVER},model_name="m",le="0.1"}}': "0+9x20",
    f'vllm:time_to_first_token_seconds_bucket{{{SERVER},model_name="m",le="+Inf"}}': "0+9x20",
    f'vllm:inter_token_latency_seconds_bucket{{{ENGINE},le="0.1"}}': "0+9x20",
    f'vllm:inter_token_latency_seconds_bucket{{{ENGINE},le="+Inf"}}': "0+9x20",
}

RUN = 'job="rlserve-runs",instance="a"'
RUN_CASES: Mapping[str, dict[str, str]] = {
    "RlserveRunStandsStill": {f"rlserve_training_global_step{{{RUN}}}": "7x70"},
    "RlserveWorkersLost": {f"rlserve_pool_num_worker_failures{{{RUN}}}": "0x30 5x40"},
    "RlserveBudgetSpent": {f"rlserve_cost_budget_share{{{RUN}}}": "1.01x70"},
    "RlserveBudgetHeld": {f"rlserve_pool_num_grown{{{RUN}}}": "4x70"},
    "RlserveHourlyBudgetTooSmall": {f"rlserve_pool_num_wanted{{{RUN}}}": "12x70"},
    "RlserveLoanNotReturned": {f"rlserve_pool_num_owed{{{RUN}}}": "2x70"},
}
RUN_WELL = {
    f"rlserve_training_global_step{{{RUN}}}": "0+1x70",
    f"rlserve_pool_num_worker_failures{{{RUN}}}": "0x30 1x40",
    f"rlserve_cost_budget_share{{{RUN}}}": "0.5x70",
    f"rlserve_pool_num_wanted{{{RUN}}}": "8x70",
    f"rlserve_pool_num_asked{{{RUN}}}": "8x70",
    f"rlserve_pool_num_grown{{{RUN}}}": "4x15 8x55",
    f"rlserve_cost_money_per_hour{{{RUN}}}": "55x70",
    f"rlserve_cost_money_per_hour_limit{{{RUN}}}": "60x70",
    f"rlserve_pool_num_owed{{{RUN}}}": "2x10 0x60",
}

SERVERS = Alerts(path=ALERTS, after_min=18, well=SERVER_WELL, cases=SERVER_CASES)
RUNS = Alerts(path=RUN_ALERTS, after_min=60, well=RUN_WELL, cases=RUN_CASES)
BOTH = pytest.mark.parametrize("alerts", [SERVERS, RUNS], ids=["servers", "runs"])


@BOTH
def test_alerts_say_what_is_wrong_and_what_to_do(alerts: Alerts) -> None:
    check_alerts(alerts.path)


@BOTH
def test_every_alert_is_tried(alerts: Alerts) -> None:
    assert set(alerts.cases) == {rule["alert"] for rule in rules(alerts.path)}


@NEEDS_PROMTOOL
@pytest.mark.parametrize(
    ("alerts", "alert"),
    [pytest.param(alerts, name, id=name) for alerts in (SERVERS, RUNS) for name in sorted(alerts.cases)],
)
def test_an_alert_fires_when_it_should_and_not_while_all_is_well(alerts: Alerts, alert: str, tmp_path: Path) -> None:
    after = f"{alerts.after_min}m"
    assert fires(tmp_path, alerts.path, alert, {**alerts.well, **alerts.cases[alert]}, after=after)
    assert not fires(tmp_path, alerts.path, alert, alerts.well, after=after)
