"""``/metrics``: the engines' numbers and the front's own, by the names that vLLM's dashboards know.

Labels come from fixed sets alone: a client cannot make new ones, and no text of it is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client import Histogram as ClientHistogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rlserve.engine.stats.metrics import FIRST_TOKEN_BOUNDS_S, REQUEST_BOUNDS_S
from rlserve.tracking.base import EngineMetrics
from rlserve.tracking.prometheus import engine_families

OTHER = "other"
_METHODS = frozenset({"GET", "HEAD", "POST"})
_FIRST_TOKEN, _E2E_LATENCY = "vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"
"""Measured from the arrival of a request here, before its prompt is tokenised, in the place of the engines' own."""


@dataclass(frozen=True, kw_only=True)
class LiveNumbers:
    """What is read at the moment that somebody asks."""

    engines: Mapping[str, EngineMetrics]
    """Numbers of each replica's engine, by its name."""
    level: int
    num_live_samples: int
    num_ready_replicas: int
    num_failovers: int
    num_lost_replicas: int


class ServerMetrics:
    """
    Args:
        read: the numbers that are not counted here.
    """

    def __init__(self, model_name: str, read: Callable[[], LiveNumbers]) -> None:
        self._model_name = model_name
        self._registry = registry = CollectorRegistry()
        registry.register(_Live(model_name, read))
        of_engine = ("model_name", "engine")
        self._time_to_first_token = ClientHistogram(
            _FIRST_TOKEN,
            "From the arrival of a request to its first token",
            of_engine,
            buckets=FIRST_TOKEN_BOUNDS_S,
            registry=registry,
        )
        self._e2e_latency = ClientHistogram(
            _E2E_LATENCY,
            "From the arrival of a request to its end",
            of_engine,
            buckets=REQUEST_BOUNDS_S,
            registry=registry,
        )
        self._success = Counter(
            "vllm:request_success", "Answers that ended, by how", (*of_engine, "finished_reason"), registry=registry
        )
        self._rejections = Counter(
            "vllm:admission_rejections", "Requests refused for load", ("model_name", "reason"), registry=registry
        )
        self._requests = Counter("http_requests", "HTTP requests", ("handler", "method", "status"), registry=registry)
        self._durations = ClientHistogram(
            "http_request_duration_seconds",
            "From the arrival of a request to the last byte of its answer",
            ("handler", "method"),
            buckets=REQUEST_BOUNDS_S,
            registry=registry,
        )

    def register(self, collector: Collector) -> None:
        """Have what another part counts rendered, too."""
        self._registry.register(collector)

    def observe_first_token(self, engine: str, seconds: float) -> None:
        """A request has got its first token."""
        self._time_to_first_token.labels(self._model_name, engine).observe(seconds)

    def observe_end(self, engine: str, seconds: float) -> None:
        """A request has ended, with all of its answers."""
        self._e2e_latency.labels(self._model_name, engine).observe(seconds)

    def count_answer(self, engine: str, finished_reason: str) -> None:
        """An answer has ended."""
        self._success.labels(self._model_name, engine, finished_reason).inc()

    def count_rejection(self, reason: str) -> None:
        """A request was refused for load."""
        self._rejections.labels(self._model_name, reason).inc()

    def count_request(self, handler: str | None, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered; ``handler`` is the path of its route, None where there is none."""
        method = method if method in _METHODS else OTHER
        self._requests.labels(handler or OTHER, method, str(status)).inc()
        self._durations.labels(handler or OTHER, method).observe(seconds)

    def render(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)


class _Live(Collector):
    def __init__(self, model_name: str, read: Callable[[], LiveNumbers]) -> None:
        self._model_name = model_name
        self._read = read

    def collect(self) -> Iterator[Metric]:
        numbers = self._read()
        engines = {
            name: {key: value for key, value in metrics.items() if key not in (_FIRST_TOKEN, _E2E_LATENCY)}
            for name, metrics in numbers.engines.items()
        }
        yield from engine_families(self._model_name, engines)
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield gauge("rlserve:degradation_level", "0 normal, 1 answers are shortened, 2 refusing", value=numbers.level)
        yield gauge("rlserve:live_samples", "Answers under way or waiting", value=numbers.num_live_samples)
        yield gauge("rlserve:ready_replicas", "Replicas that take requests", value=numbers.num_ready_replicas)
        yield counter("rlserve:failovers", "Requests gone on with by another replica", value=numbers.num_failovers)
        yield counter("rlserve:lost_replicas", "Replicas that were lost", value=numbers.num_lost_replicas)
