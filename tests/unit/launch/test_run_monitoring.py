"""The dashboard and the alerts for runs ask for nothing that a run does not export."""

from __future__ import annotations

import pytest
from metric_names import spelled_out
from monitoring_files import (
    RUN_ALERTS,
    RUN_DASHBOARD,
    check_dashboard,
    expressions,
    grouped_in,
    metrics_in,
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
