"""From what engines have counted to samples of the load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from rlserve.engine.stats.metrics import Histogram, Value
from rlserve.serving.scaling.base import LoadSample

_FIRST_TOKEN, _INTER_TOKEN = "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"
_WAITING, _CACHE = "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
Numbers = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A server's replicas at one moment."""

    time_s: float
    num_ready: int
    num_live_samples: int
    num_places: int
    num_unplaced: int
    """Requests that no replica has."""
    engines: Mapping[str, Numbers] = field(default_factory=dict)
    """By replica, under vLLM's names. What is counted only grows, until a replica begins anew."""
    busy_s: Mapping[str, float] = field(default_factory=dict)
    """That each engine has computed in all."""


class LoadMeter:
    """Takes differences between readings."""

    def __init__(self) -> None:
        self._last: Reading | None = None

    def sample(self, reading: Reading) -> LoadSample:
        """The load since the reading before."""
        last, self._last = self._last, reading
        engines = reading.engines.values()
        return LoadSample(
            time_s=reading.time_s,
            num_ready=reading.num_ready,
            num_live_samples=reading.num_live_samples,
            num_places=reading.num_places,
            num_waiting=reading.num_unplaced + round(sum(_gauges(reading, _WAITING))),
            kv_cache_usage=fmean(_gauges(reading, _CACHE)) if any(_CACHE in engine for engine in engines) else None,
            time_to_first_token_s=None if last is None else _mean_since(last, reading, _FIRST_TOKEN),
            inter_token_latency_s=None if last is None else _mean_since(last, reading, _INTER_TOKEN),
            busy_share=None if last is None else _busy_share(last, reading),
        )


def _gauges(reading: Reading, name: str) -> list[float]:
    values = (engine.get(name) for engine in reading.engines.values())
    return [value for value in values if isinstance(value, float | int)]


def _mean_since(last: Reading, reading: Reading, name: str) -> float | None:
    """Mean of the times that all engines have counted in between; None if there were none."""
    sum_s, count = 0.0, 0
    for engine, numbers in reading.engines.items():
        now, before = numbers.get(name), last.engines.get(engine, {}).get(name)
        if not isinstance(now, Histogram):
            continue
        if isinstance(before, Histogram) and before.count <= now.count:
            sum_s, count = sum_s + now.sum - before.sum, count + now.count - before.count
        else:  # a replica that has begun since
            sum_s, count = sum_s + now.sum, count + now.count
    return sum_s / count if count else None


def _busy_share(last: Reading, reading: Reading) -> float | None:
    """Mean over the engines that were there before, too."""
    passed_s = reading.time_s - last.time_s
    if passed_s <= 0:
        return None
    spent = [now - last.busy_s[name] for name, now in reading.busy_s.items() if name in last.busy_s]
    shares = [min(busy_s / passed_s, 1.0) for busy_s in spent if busy_s >= 0]
    return fmean(shares) if shares else None
