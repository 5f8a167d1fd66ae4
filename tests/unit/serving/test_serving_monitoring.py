"""The dashboard and the alerts for servers ask for nothing that a server does not export."""

from __future__ import annotations

import re

import pytest
from engine_numbers import some_stats
from monitoring_files import (
    DASHBOARD,
    check_dashboard,
    expressions,
    grouped_in,
    metrics_in,
    panels,
)
from prometheus_client.parser import text_string_to_metric_families
from replica_fakes import make_pool

from rlserve.engine.stats.metrics import vllm_metrics
from rlserve.serving.content.base import ContentFilter, Found
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.content.filtering import Filtering
from rlserve.serving.metrics import LiveNumbers, ServerMetrics
from rlserve.serving.scaling.config import ScalingConfig
from rlserve.serving.scaling.scaler import Scaler
from rlserve.serving.scaling.targets import TargetTracking

OF_PROMETHEUS = {"up"}
"""Metrics that Prometheus makes itself."""
NOT_SHOWN = {
    "vllm:num_requests_waiting_by_reason",
    "vllm:lora_requests_info",
    "vllm:corrupted_requests_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:prompt_tokens_cached_by_source_total",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_n",
    "vllm:request_params_max_tokens",
    "vllm:request_prefill_kv_computed_tokens",
    "vllm:request_num_preemptions",
}
"""Details that others of the dashboard's metrics sum up."""
TARGET_LABELS = {"job", "instance"}
"""Labels that Prometheus adds."""


class NoFilter(ContentFilter):
    """Finds nothing."""

    max_chars = 1

    def find(self, text: str, start: int) -> Found | None:
        return None


def exported() -> dict[str, set[str]]:
    """Names of a server's samples, and their labels."""
    engine = vllm_metrics(some_stats())
    numbers = LiveNumbers(
        engines={"0": engine}, level=0, num_live_samples=0, num_ready_replicas=1, num_failovers=0, num_lost_replicas=0
    )
    metrics = ServerMetrics("m", lambda: numbers)
    pool, _ = make_pool()
    metrics.register(Scaler(TargetTracking(ScalingConfig()), pool, interval_s=1))
    filtering = Filtering(ContentConfig(), NoFilter())
    filtering.count("prompt", "a")
    metrics.register(filtering)
    metrics.observe_first_token("0", 0.1)
    metrics.observe_end("0", 1.0)
    metrics.count_answer("0", "stop")
    metrics.count_rejection("load")
    metrics.count_request("/v1/completions", "POST", 200, 1.0)
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


EXPORTED = exported()


def test_names_are_found_in_expressions_of_all_forms() -> None:
    expression = 'histogram_quantile(0.9, sum by (le, a) (rate(x:y_bucket{b="c=d",e=~"f"}[5m]))) / z > 2 and up == 1'
    assert metrics_in(expression) == {"x:y_bucket": {"b", "e"}, "z": set(), "up": set()}
    assert grouped_in(expression) == {"le", "a"}


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda value: value[:40])
def test_every_metric_and_every_label_is_exported(where: str, expression: str) -> None:
    asked = metrics_in(expression)
    assert asked
    assert set(asked) <= set(EXPORTED) | OF_PROMETHEUS
    for name, labels in asked.items():
        known = EXPORTED.get(name, set()) | TARGET_LABELS
        assert labels | grouped_in(expression) <= known, (name, labels, grouped_in(expression))


def test_every_metric_of_the_front_is_in_the_dashboard() -> None:
    asked = {name for panel in panels() for target in panel["targets"] for name in metrics_in(target["expr"])}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    known = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in EXPORTED if not name.endswith("_created")}
    assert known - shown == NOT_SHOWN


def test_the_dashboard_is_whole() -> None:
    check_dashboard(DASHBOARD)
    assert {panel["fieldConfig"]["defaults"]["noValue"] for panel in panels()} == {"No traffic"}
