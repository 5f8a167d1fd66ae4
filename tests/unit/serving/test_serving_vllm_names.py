"""What is exported under vLLM's names has its types and its labels; and the page for users says what is exported."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_numbers import some_stats
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from replica_fakes import make_pool

from rlserve.engine.stats.ended_samples import PREEMPTIONS_BOUNDS, SAMPLES_OF_REQUEST_BOUNDS
from rlserve.engine.stats.metrics import (
    FIRST_TOKEN_BOUNDS_S,
    INTER_TOKEN_BOUNDS_S,
    REQUEST_BOUNDS_S,
    STEP_TOKENS_BOUNDS,
    vllm_metrics,
)
from rlserve.serving.metrics import LiveNumbers, ServerMetrics
from rlserve.serving.scaling.config import ScalingConfig
from rlserve.serving.scaling.scaler import Scaler
from rlserve.serving.scaling.targets import TargetTracking
from rlserve.tracking.vllm_names import VLLM_METRICS

SOURCE = os.environ.get("RLSERVE_VLLM_SOURCE")
"""Folder of vLLM's sources, the one with ``vllm/`` in it."""
NEEDS_SOURCE = pytest.mark.skipif(SOURCE is None, reason="RLSERVE_VLLM_SOURCE does not name vLLM's sources")
INFO = "vllm:cache_config_info"
"""Its labels are vLLM's configuration of the cache."""
FROZEN = """
num_requests_running num_requests_waiting num_requests_waiting_by_reason num_requests_kv_fetch_by_stage
engine_sleep_state kv_cache_usage_perc corrupted_requests watermark_requests prefix_cache_queries prefix_cache_hits
external_prefix_cache_queries external_prefix_cache_hits mm_cache_queries mm_cache_hits num_preemptions prompt_tokens
prompt_tokens_by_source prompt_tokens_cached prompt_tokens_cached_by_source generation_tokens request_success
admission_rejections request_prompt_tokens request_generation_tokens iteration_tokens_total
request_max_num_generation_tokens request_params_n request_params_max_tokens time_to_first_token_seconds
inter_token_latency_seconds request_time_per_output_token_seconds e2e_request_latency_seconds request_queue_time_seconds
request_inference_time_seconds request_prefill_time_seconds request_decode_time_seconds request_num_preemptions
request_prefill_kv_computed_tokens kv_block_lifetime_seconds kv_block_idle_before_evict_seconds
kv_block_reuse_gap_seconds lora_requests_info cache_config_info
"""
"""All names in vLLM 0.33's ``v1/metrics/loggers.py``, written down once."""


def rendered(*, scales: bool = False) -> list[Metric]:
    """What a server exports after one answer and one refusal."""
    engine = vllm_metrics(some_stats())
    numbers = LiveNumbers(
        engines={"0": engine}, level=0, num_live_samples=0, num_ready_replicas=1, num_failovers=0, num_lost_replicas=0
    )
    metrics = ServerMetrics("m", lambda: numbers)
    metrics.observe_first_token("0", 0.1)
    metrics.observe_end("0", 1.0)
    metrics.count_answer("0", "stop")
    metrics.count_rejection("load")
    metrics.count_request("/v1/completions", "POST", 200, 1.0)
    if scales:
        metrics.register(Scaler(TargetTracking(ScalingConfig()), make_pool()[0], interval_s=1))
    return list(text_string_to_metric_families(metrics.render().decode()))


def served() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of all that goes by a name of vLLM's."""
    return {
        family.name: (family.type, set(family.samples[0].labels) - {"le"})
        for family in rendered()
        if family.name.startswith("vllm:") and not family.name.endswith("_created")
    }


def test_everything_that_the_table_has_is_exported_with_its_type_and_labels_and_nothing_else() -> None:
    promised = {name: (metric.kind, set(metric.labels)) for name, metric in VLLM_METRICS.items() if metric.meaning}
    assert served() == promised


def test_an_engine_exports_what_no_server_must_measure() -> None:
    of_engines = {name for name, metric in VLLM_METRICS.items() if metric.meaning and not metric.server_only}
    assert set(vllm_metrics(some_stats())) == of_engines


def test_the_table_has_all_names_and_says_either_what_one_means_or_why_there_is_none() -> None:
    assert set(VLLM_METRICS) == {f"vllm:{name}" for name in FROZEN.split()}
    assert all(bool(metric.meaning) != bool(metric.missing) for metric in VLLM_METRICS.values())


def of_source(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Name, type and labels of each metric that vLLM's source makes, read from its syntax tree: of labels, those that
    are beside the engine's."""
    texts = {"labelnames": ["model_name", "engine"]}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Constant(value=str(text))):
                texts[name] = [text]
    for call in ast.walk(tree):
        match call:
            case ast.Call(func=ast.Attribute(attr="_gauge_cls" | "_counter_cls" | "_histogram_cls" as made)):
                arguments = {keyword.arg: keyword.value for keyword in call.keywords}
                name, labels = arguments["name"], arguments["labelnames"]
                kind = made.removeprefix("_").removesuffix("_cls")
                if isinstance(name, ast.Constant):
                    yield str(name.value), kind, list(_labels(labels, texts))


def _labels(node: ast.expr, texts: dict[str, list[str]]) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) | ast.Attribute(attr=name):
            yield from texts[name]
        case ast.List(elts=parts):
            for part in parts:
                yield from _labels(part, texts)
        case ast.BinOp(left=left, right=right):
            yield from _labels(left, texts)
            yield from _labels(right, texts)
        case _:
            raise AssertionError(f"labels of a form that this test does not know: {ast.unparse(node)}")


@NEEDS_SOURCE
def test_names_types_and_labels_are_those_of_the_source() -> None:
    assert SOURCE is not None
    found = {
        name: (kind, set(labels))
        for name, kind, labels in of_source(Path(SOURCE) / "vllm" / "v1" / "metrics" / "loggers.py")
    }
    table = {name: (metric.kind, set(metric.labels)) for name, metric in VLLM_METRICS.items() if name != INFO}
    assert found == table


@NEEDS_SOURCE
def test_the_labels_of_the_cache_are_fields_of_the_source() -> None:
    assert SOURCE is not None
    source = (Path(SOURCE) / "vllm" / "config" / "cache.py").read_text()
    names = set(re.findall(r"^    (\w+):", source, re.MULTILINE))
    assert set(VLLM_METRICS[INFO].labels) - {"model_name", "engine"} <= names


@NEEDS_SOURCE
def test_histograms_have_the_bounds_of_the_source() -> None:
    assert SOURCE is not None
    tree = ast.parse((Path(SOURCE) / "vllm" / "v1" / "metrics" / "buckets.py").read_text())
    found = {
        node.target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.value is not None
        and node.target.id.endswith("_BUCKETS")
    }
    ours = {
        "TIME_TO_FIRST_TOKEN_BUCKETS": FIRST_TOKEN_BOUNDS_S,
        "INTER_TOKEN_LATENCY_BUCKETS": INTER_TOKEN_BOUNDS_S,
        "REQUEST_LATENCY_BUCKETS": REQUEST_BOUNDS_S,
        "ITERATION_TOKENS_BUCKETS": STEP_TOKENS_BOUNDS,
        "REQUEST_PARAMS_N_BUCKETS": SAMPLES_OF_REQUEST_BOUNDS,
        "REQUEST_NUM_PREEMPTIONS_BUCKETS": PREEMPTIONS_BOUNDS,
    }
    assert ours == {name: found[name] for name in ours}


def test_the_first_table_of_the_page_is_what_a_plain_server_exports_and_the_second_what_is_asked_for() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    section = page.split("## Numbers")[1].split("## ")[0]
    first, second = section.split("and, where they are asked for,")
    plain, scaled = _sample_names(rendered()), _sample_names(rendered(scales=True))
    assert _names_in(first) == plain
    assert scaled - plain <= _names_in(second)
    assert not _names_in(second) & plain


def _names_in(text: str) -> set[str]:
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]*)`", row)}


def _sample_names(families: list[Metric]) -> set[str]:
    """As the page has them: of histograms without their suffixes."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in families
        if not family.name.endswith("_created")
    }
