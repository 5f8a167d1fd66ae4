"""The dashboard and the alerts for runs ask for nothing that a run does not export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from metric_names import spelled_out
from monitoring_files import (
    NEEDS_PROMTOOL,
    RUN_ALERTS,
    RUN_DASHBOARD,
    check_alerts,
    check_dashboard,
    expressions,
    fires,
    grouped_in,
    metrics_in,
    rules,
)
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rlserve.tracking.prometheus import PrometheusEndpoint

TARGET_LABELS = {"job", "instance"}
"""Labels that Prometheus adds; a run's own numbers have no others."""


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of a run's numbers, as its endpoint has them, once it has written all that are documented."""
    endpoint = PrometheusEndpoint("127.0.0.1", 0, "m")
    try:
        endpoint.log(1, dict.fromkeys(spelled_out(), 1.0))
        registry = CollectorRegistry()
        registry.register(endpoint)
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return {sample.name for family in families for sample in family.samples}
    finally:
        endpoint.close(0)


@pytest.mark.parametrize(
    ("where", "expression"), list(expressions(RUN_DASHBOARD, RUN_ALERTS)), ids=lambda value: value[:40]
)
def test_every_metric_is_exported(where: str, expression: str, exported: set[str]) -> None:
    asked = metrics_in(expression)
    assert asked
    assert set(asked) <= exported | {"up"}, where
    assert set().union(*asked.values()) | grouped_in(expression) <= TARGET_LABELS


def test_all_that_growing_and_sharing_export_is_shown() -> None:
    asked = {name for _, expression in expressions(RUN_DASHBOARD, RUN_ALERTS) for name in metrics_in(expression)}
    shown = {f"pool_num_{name}" for name in ("wanted", "asked", "grown", "lent", "borrowed", "owed")}
    shown |= {"cost_money_per_hour", "cost_money_per_hour_limit"}
    assert {f"rlserve_{name}" for name in shown} <= asked


def test_the_dashboard_is_whole() -> None:
    check_dashboard(RUN_DASHBOARD)


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    check_alerts(RUN_ALERTS)


RUN = 'job="rlserve-runs",instance="a"'
CASES: Mapping[str, dict[str, str]] = {
    "RlserveRunStandsStill": {f"rlserve_training_global_step{{{RUN}}}": "7x70"},
    "RlserveWorkersLost": {f"rlserve_pool_num_worker_failures{{{RUN}}}": "0x30 5x40"},
    "RlserveBudgetSpent": {f"rlserve_cost_budget_share{{{RUN}}}": "1.01x70"},
    "RlserveBudgetHeld": {f"rlserve_pool_num_grown{{{RUN}}}": "4x70"},
    "RlserveHourlyBudgetTooSmall": {f"rlserve_pool_num_wanted{{{RUN}}}": "12x70"},
    "RlserveLoanNotReturned": {f"rlserve_pool_num_owed{{{RUN}}}": "2x70"},
}
"""Series of one value a minute, in which the alert fires after 60 of them."""
WELL = {
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


def test_every_alert_is_tried() -> None:
    assert set(CASES) == {rule["alert"] for rule in rules(RUN_ALERTS)}


@NEEDS_PROMTOOL
@pytest.mark.parametrize("alert", sorted(CASES))
def test_an_alert_fires_when_it_should_and_not_while_all_is_well(alert: str, tmp_path: Path) -> None:
    assert fires(tmp_path, RUN_ALERTS, alert, {**WELL, **CASES[alert]}, after="60m")
    assert not fires(tmp_path, RUN_ALERTS, alert, WELL, after="60m")
