"""OpenTelemetry: one span for each request that generates, sent by OTLP over HTTP from a thread of its own.

::

    Gate: arrival ──► GenerationRecord ◄── Generation writes down what comes
             end  ──► Tracing.finish ──► span, below the client's own (traceparent) ──► batches ──► collector

A span is made when its request has ended, with the times that were noted, so nothing is open meanwhile. Names follow
OpenTelemetry's conventions for generative AI; those that they lack are vLLM's. No text is in them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rlserve import __version__
from rlserve.errors import UserError
from rlserve.json_log import RequestFields
from rlserve.serving.config import TracingConfig
from rlserve.serving.observing.record import GenerationRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

Value = str | int | float | bool | list[str]
_OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/generate_stream": "text_completion",
}
"""Routes that have spans, with what OpenTelemetry calls their operation."""


class Tracing:
    """
    Args:
        exporter: where spans go; they are sent in batches by a thread.
    """

    def __init__(self, config: TracingConfig, model_name: str, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": config.service_name, "service.version": __version__})
        sampler = ParentBased(TraceIdRatioBased(config.sample_ratio))
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("rlserve", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def finish(
        self,
        route: str | None,
        headers: Mapping[str, str],
        record: GenerationRecord,
        fields: RequestFields,
        *,
        status: int,
        seconds: float,
    ) -> None:
        """A request has been answered.

        Args:
            route: its path among the routes; others than those that generate have no span.
            headers: its own, by lower-case names.
            status: of HTTP.
            seconds: from its arrival until now.
        """
        operation = _OPERATIONS.get(route or "")
        if operation is None:
            return
        from opentelemetry.trace import SpanKind, StatusCode

        end_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=end_ns - int(seconds * 1e9),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": self._model_name,
                "gen_ai.response.model": self._model_name,
                "gen_ai.request.id": fields.request_id,
                "http.request.method": "POST",
                "http.route": route or "",
                "http.response.status_code": status,
                "gen_ai.latency.e2e": seconds,
                **dict(_of_generation(record)),
                **dict(_of_fields(fields)),
            },
        )
        errors = [output.error for output in record.outputs if output.error is not None]
        if status >= 500 or errors:
            span.set_status(StatusCode.ERROR)
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def create_tracing(config: TracingConfig, model_name: str) -> Tracing | None:
    """None where no endpoint is set.

    Raises:
        UserError: the packages for it are not installed.
    """
    if config.endpoint is None:
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise UserError("tracing.endpoint needs OpenTelemetry: pip install 'rlserve[tracing]'")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    endpoint = config.endpoint.rstrip("/")
    traces = endpoint if endpoint.endswith("/v1/traces") else f"{endpoint}/v1/traces"
    return Tracing(config, model_name, OTLPSpanExporter(endpoint=traces))


def _of_generation(record: GenerationRecord) -> Iterator[tuple[str, Value]]:
    if not record.requests:
        return
    sampling = record.requests[0].sampling
    yield "gen_ai.request.max_tokens", sampling.max_tokens
    yield "gen_ai.request.temperature", sampling.temperature
    yield "gen_ai.request.top_p", sampling.top_p
    yield "gen_ai.request.top_k", sampling.top_k
    yield "gen_ai.request.n", sampling.n
    yield "rlserve.num_failovers", record.num_failovers
    num_prompt_tokens = sum(len(request.prompt_token_ids) for request in record.requests)
    yield from _usage("input", "prompt", num_prompt_tokens)
    samples = [sample for output in record.outputs for sample in output.samples]
    if len(record.outputs) == len(record.requests):
        yield from _usage("output", "completion", sum(len(sample.tokens.token_ids) for sample in samples))
        yield "gen_ai.usage.num_sequences", len(samples)
        yield "gen_ai.usage.cache_read.input_tokens", sum(output.num_cached_tokens for output in record.outputs)
        yield "gen_ai.response.finish_reasons", [str(sample.finish_reason) for sample in samples]
    queue_times_s = [output.queue_time_s for output in record.outputs if output.queue_time_s is not None]
    if queue_times_s:
        yield "gen_ai.latency.time_in_queue", max(queue_times_s)
    first_s = record.time_to_first_token_s
    if first_s is None:  # a whole answer: as its engine saw it
        seen_s = [each.time_to_first_token_s for each in record.outputs if each.time_to_first_token_s is not None]
        first_s = min(seen_s, default=None)
    if first_s is not None:
        yield "gen_ai.latency.time_to_first_token", first_s


def _usage(name: str, older_name: str, num_tokens: int) -> Iterator[tuple[str, Value]]:
    """Under the name of today, and the one that vLLM's spans have."""
    yield f"gen_ai.usage.{name}_tokens", num_tokens
    yield f"gen_ai.usage.{older_name}_tokens", num_tokens


def _of_fields(fields: RequestFields) -> Iterator[tuple[str, Value]]:
    if fields.replica is not None:
        yield "rlserve.replica", fields.replica
    if fields.weight_version is not None:
        yield "rlserve.weight_version", fields.weight_version
