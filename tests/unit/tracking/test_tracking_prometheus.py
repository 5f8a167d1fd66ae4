"""The Prometheus endpoint, asked over HTTP and read with Prometheus' own parser."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
from conftest import FILES_ONLY
from engine_numbers import some_stats
from prometheus_client.parser import text_string_to_metric_families

from rlserve.engine.stats.engine_stats import AdapterUse, EngineStats
from rlserve.engine.stats.metrics import LORA_INFO, VLLM_GAUGES, Histogram, HistogramCounter, vllm_metrics
from rlserve.errors import ConfigurationError, UserError
from rlserve.tracking.config import TrackingConfig
from rlserve.tracking.prometheus import PrometheusEndpoint, engine_families
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.tracker import Tracker, create_tracker

Samples = dict[tuple[str, str | None, str | None], float]
"""By name, engine and upper bound."""


def _stats(num_generated: int, times_s: tuple[float, ...] = ()) -> EngineStats:
    latency = HistogramCounter((0.1, 1.0))
    for time_s in times_s:
        latency.observe(time_s)
    return some_stats(latency.snapshot(), num_used_blocks=2, num_generated_tokens=num_generated)


def _fetch(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("engine"), sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def endpoint() -> Iterator[PrometheusEndpoint]:
    endpoint = PrometheusEndpoint("127.0.0.1", 0, "/models/small")
    yield endpoint
    endpoint.close(0)


def test_each_engine_is_listed_with_the_numbers_of_now(endpoint: PrometheusEndpoint) -> None:
    assert not any(name.startswith("vllm:") for name, _, _ in _fetch(endpoint.port))
    engines = {"cpu-a/0": _stats(5, (0.05, 0.5, 0.5, 7.0)), "cpu-a/1": _stats(9)}
    endpoint.watch_engines(lambda: {slot_id: vllm_metrics(stats) for slot_id, stats in engines.items()})
    samples = _fetch(endpoint.port)
    assert samples["vllm:generation_tokens_total", "cpu-a/0", None] == 5
    assert samples["vllm:generation_tokens_total", "cpu-a/1", None] == 9
    assert samples["vllm:kv_cache_usage_perc", "cpu-a/1", None] == 0.25
    buckets = [samples["vllm:time_to_first_token_seconds_bucket", "cpu-a/0", le] for le in ("0.1", "1.0", "+Inf")]
    assert buckets == [1, 3, 4]
    assert samples["vllm:time_to_first_token_seconds_count", "cpu-a/0", None] == 4
    assert samples["vllm:time_to_first_token_seconds_sum", "cpu-a/0", None] == pytest.approx(8.05)

    engines.pop("cpu-a/1")
    engines["cpu-a/0"] = _stats(6)
    samples = _fetch(endpoint.port)
    assert samples["vllm:generation_tokens_total", "cpu-a/0", None] == 6
    assert not any(engine == "cpu-a/1" for _, engine, _ in samples)


def test_every_number_of_an_engine_is_served_under_the_name_that_vllm_gives_it(endpoint: PrometheusEndpoint) -> None:
    metrics = vllm_metrics(_stats(1))
    endpoint.watch_engines(lambda: {"cpu-a/0": metrics})
    served = {name for name, engine, _ in _fetch(endpoint.port) if engine or name == LORA_INFO}
    for name in metrics:
        is_histogram = isinstance(metrics[name], Histogram)
        suffix = "_bucket" if is_histogram else "" if name in VLLM_GAUGES else "_total"
        assert name + suffix in served
    assert set(metrics) >= VLLM_GAUGES


def test_the_newest_numbers_of_the_run_are_served_beside_them(endpoint: PrometheusEndpoint) -> None:
    endpoint.log(1, {"critic/score/mean": 0.25, "val-core/held_out/mean@1": 0.5, "vllm:num_preemptions": 3.0})
    endpoint.log(2, {"critic/score/mean": 0.75, "actor/grad_norm": float("nan")})
    samples = _fetch(endpoint.port)
    assert samples["rlserve_critic_score_mean", None, None] == 0.75
    assert samples["rlserve_val_core_held_out_mean_1", None, None] == 0.5
    assert "rlserve_actor_grad_norm" in {name for name, _, _ in samples}
    assert not any("preemptions" in name for name, _, _ in samples)


def test_a_closed_endpoint_frees_its_port() -> None:
    endpoint = PrometheusEndpoint("127.0.0.1", 0, "m")
    endpoint.close(0)
    with pytest.raises(URLError):
        _fetch(endpoint.port)
    PrometheusEndpoint("127.0.0.1", endpoint.port, "m").close(0)


def test_a_port_that_is_taken_is_the_users_to_mend() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"tracking.prometheus_port={port} on 127.0.0.1 cannot be listened on"):
            PrometheusEndpoint("127.0.0.1", port, "m")


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_a_port(port: int) -> None:
    with pytest.raises(ConfigurationError, match="prometheus_port"):
        TrackingConfig(prometheus_port=port)


def _endpoints(tracker: Tracker) -> list[PrometheusEndpoint]:
    return [sink for sink in tracker._sinks if isinstance(sink, PrometheusEndpoint)]


def test_the_tracker_of_a_run_serves_only_if_asked(tmp_path: Path) -> None:
    silent = create_tracker(FILES_ONLY, RunFolder.create(tmp_path, "silent"), {})
    assert _endpoints(silent) == []
    silent.close(0)
    tracker = create_tracker(replace(FILES_ONLY, prometheus_port=0), RunFolder.create(tmp_path, "run"), {})
    tracker.watch_engines(lambda: {"cpu-a/0": vllm_metrics(_stats(4))})
    tracker.log(1, {"pool/num_train": 2})
    samples = _fetch(_endpoints(tracker)[0].port)
    tracker.close(0)
    assert samples["vllm:generation_tokens_total", "cpu-a/0", None] == 4
    assert samples["rlserve_pool_num_train", None, None] == 2


def test_adapters_of_all_engines_are_one_line_without_labels_of_an_engine() -> None:
    used = (
        AdapterUse(num_loaded=2, running=("a", "b")),
        AdapterUse(num_loaded=3, running=("b",), waiting=("c",)),
    )
    engines = {str(place): vllm_metrics(some_stats(adapters=adapters)) for place, adapters in enumerate(used)}
    (family,) = (each for each in engine_families("m", engines) if each.name == LORA_INFO)
    (sample,) = family.samples
    assert sample.labels == {"max_lora": "3", "waiting_lora_adapters": "c", "running_lora_adapters": "a,b"}
    assert sample.value > 1e9, "a time"
