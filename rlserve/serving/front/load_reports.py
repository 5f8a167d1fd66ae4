"""Reports of the load in the headers of answers, for balancers that ask for them: ORCA's, by the names that vLLM gives.

A request with ``endpoint-load-metrics-format: TEXT`` or ``JSON`` gets, with any answer to a POST,

    endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=3.0
    endpoint-load-metrics: JSON {"named_metrics":{"kv_cache_usage_perc":0.25,"num_requests_waiting":3.0}}

https://github.com/envoyproxy/envoy/issues/6614 has the format, and xds/data/orca/v3/orca_load_report.proto its fields.
The numbers are what the replicas told last: nobody is asked for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlserve.engine.stats.metrics import Value
from rlserve.serving.front.gate import OPEN_PATHS
from rlserve.serving.replicas.base import Replicas

FORMAT_HEADER = "endpoint-load-metrics-format"
REPORT_HEADER = "endpoint-load-metrics"
_KV_CACHE, _WAITING = "kv_cache_usage_perc", "num_requests_waiting"


class LoadReports:
    """Stands before the routes and behind the gate, so that only those hear of the load who may ask for answers.

    Answers to GET have none, nor those that need no key.
    """

    def __init__(self, app: ASGIApp, pool: Replicas) -> None:
        self._app = app
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = Headers(scope=scope).get(FORMAT_HEADER) if scope["type"] == "http" else None
        if wanted is None or scope["method"] != "POST" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return

        async def send_with_report(message: Message) -> None:
            if message["type"] == "http.response.start":
                report = load_report(wanted, self._pool.engine_metrics)
                if report is not None:
                    MutableHeaders(scope=message)[REPORT_HEADER] = report
            await send(message)

        await self._app(scope, receive, send_with_report)


def load_report(wanted: str, engines: Mapping[str, Mapping[str, Value]]) -> str | None:
    """The header's value; None for a format that is unknown, and while no replica has told of itself.

    Args:
        wanted: the format, whatever its case.
        engines: numbers of each replica's engine, by vLLM's names.
    """
    shares, waiting = _gauges(engines, f"vllm:{_KV_CACHE}"), _gauges(engines, f"vllm:{_WAITING}")
    if not shares or not waiting:
        return None
    numbers = {_KV_CACHE: fmean(shares), _WAITING: float(sum(waiting))}
    if wanted.upper() == "TEXT":
        return "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in numbers.items())
    if wanted.upper() == "JSON":
        return "JSON " + orjson.dumps({"named_metrics": numbers}).decode()
    return None


def _gauges(engines: Mapping[str, Mapping[str, Value]], name: str) -> list[float]:
    values = (numbers.get(name) for numbers in engines.values())
    return [value for value in values if isinstance(value, float | int)]
