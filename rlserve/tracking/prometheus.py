"""Metrics for Prometheus to fetch: each engine's numbers as vLLM names them, and the newest of the run's own.

::

    GET /metrics ──► engines, as of their last poll      vllm:generation_tokens_total{model_name="…",engine="gpu-a/0"}
                 └─► the run, as of its last step        rlserve_critic_score_mean

The labels are vLLM's, so that its dashboards work; ``engine`` is the slot. A replica that left is not listed. The run's
names are those of ``metrics.jsonl`` with ``_`` for what Prometheus does not take.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from rlserve.engine.stats.metrics import LORA_INFO, VLLM_GAUGES, Histogram, Labelled, Value
from rlserve.errors import UserError
from rlserve.tracking.base import EngineMetrics, LiveSink

logger = logging.getLogger(__name__)

_LABELS = ("model_name", "engine")


class PrometheusEndpoint(LiveSink, Collector):
    """Serves from a thread of its own until it is closed.

    Args:
        host: address to listen on.
        port: 0 takes a free one; ``port`` then tells which.
        model_name: label of the engines' metrics.

    Raises:
        UserError: the port is taken, or the address is not of this machine.
    """

    name = "the Prometheus endpoint"

    def __init__(self, host: str, port: int, model_name: str) -> None:
        self._model_name = model_name
        self._run_metrics: Mapping[str, float] = {}
        self._read_engines: Callable[[], Mapping[str, EngineMetrics]] = dict
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise UserError(
                f"tracking.prometheus_port={port} on {host} cannot be listened on: {error}; choose another"
            ) from error
        self.port = int(self._server.server_port)
        logger.info("metrics for Prometheus: http://%s:%d/metrics", host, self.port)

    def watch_engines(self, read: Callable[[], Mapping[str, EngineMetrics]]) -> None:
        self._read_engines = read

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # Replaced and never changed, since the other thread may be reading it.
        self._run_metrics = {**self._run_metrics, **metrics}

    def close(self, exit_code: int) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        yield from engine_families(self._model_name, self._read_engines())
        for name, number in self._run_metrics.items():
            if not name.startswith("vllm:"):
                yield GaugeMetricFamily("rlserve_" + re.sub(r"\W", "_", name), name, value=number)


def engine_families(model_name: str, engines: Mapping[str, EngineMetrics]) -> Iterator[Metric]:
    """Numbers of engines by their name, with vLLM's labels."""
    families: dict[str, Metric] = {}
    yield from _lora_family([metrics[LORA_INFO] for metrics in engines.values() if LORA_INFO in metrics])
    for engine, metrics in engines.items():
        for name, value in metrics.items():
            if name == LORA_INFO:
                continue
            family = families.setdefault(name, _family(name, value))
            _add(family, (model_name, engine), value)
    yield from families.values()


def _lora_family(told: Sequence[Value]) -> Iterator[Metric]:
    """The adapters of all engines together, with the time of now as the value: dashboards take the newest."""
    infos = [info for info in told if isinstance(info, Labelled)]
    if not infos:
        return
    most, waiting, running = zip(*(info.series[0][0] for info in infos), strict=True)
    labels = [max(most, key=int), *(",".join(dict.fromkeys(_names(each))) for each in (waiting, running))]
    family = GaugeMetricFamily(LORA_INFO, LORA_INFO, labels=infos[0].labels)
    family.add_metric(labels, time.time())
    yield family


def _names(joined: Sequence[str]) -> list[str]:
    return sorted(name for each in joined if each for name in each.split(","))


def _family(name: str, value: Value) -> Metric:
    if isinstance(value, Histogram):
        return HistogramMetricFamily(name, name, labels=_LABELS)
    labels = (*_LABELS, *value.labels) if isinstance(value, Labelled) else _LABELS
    return (GaugeMetricFamily if name in VLLM_GAUGES else CounterMetricFamily)(name, name, labels=labels)


def _add(family: Metric, labels: tuple[str, ...], value: Value) -> None:
    match value:
        case Histogram():
            bounds = [*map(floatToGoString, value.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(value.counts), strict=True))
            family.add_metric(labels, buckets=buckets, sum_value=value.sum)  # type: ignore[attr-defined]
        case Labelled():
            for further, number in value.series:
                family.add_metric((*labels, *further), number)  # type: ignore[attr-defined]
        case _:
            family.add_metric(labels, value)  # type: ignore[attr-defined]
