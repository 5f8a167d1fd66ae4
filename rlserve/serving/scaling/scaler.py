"""Looks at a server's load, asks the policy, and has the replicas resized.

::

    every interval_s:  ReplicaPool ──► Reading ──LoadMeter──► samples ──policy──► plan ──► resize, log, metrics
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rlserve.serving.replicas.pool import ReplicaPool
from rlserve.serving.scaling.base import Cause, LoadSample, ScalingObservation, ScalingPlan, ScalingPolicy
from rlserve.serving.scaling.load_meter import LoadMeter, Reading

logger = logging.getLogger(__name__)


class Scaler(Collector):
    """Carries a policy's decisions out, and tells Prometheus of them."""

    def __init__(
        self,
        policy: ScalingPolicy[Any],
        pool: ReplicaPool,
        *,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._pool = pool
        self._interval_s = interval_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._state = policy.initial_state()
        self._meter = LoadMeter()
        self._samples: deque[LoadSample] = deque()
        self._cause = Cause.STEADY
        self._changes: Counter[tuple[str, Cause]] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Replicas are resized while the context is open."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._run())
            yield
            task.cancel()

    def step(self) -> ScalingPlan:
        """Look, decide, and carry the decision out."""
        now_s, pool, before = self._clock(), self._pool, self._pool.num_wanted
        if pool.is_paused:
            return self._hold()
        self._samples.append(self._meter.sample(self._read(now_s)))
        while self._samples[0].time_s < now_s - self._policy.look_back_s:
            self._samples.popleft()
        observation = ScalingObservation(
            time_s=now_s,
            unix_s=self._wall_clock(),
            num_wanted=before,
            most=len(pool.replicas),
            samples=tuple(self._samples),
        )
        plan, self._state = self._policy.decide(observation, self._state)
        self._cause = plan.cause
        if plan.num_replicas != before:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in plan.numbers.items())
            logger.info("replicas: %d -> %d: %s (%s)", before, plan.num_replicas, plan.reason, numbers)
            self._changes["up" if plan.num_replicas > before else "down", plan.cause] += 1
            pool.resize(plan.num_replicas)
        return plan

    def _hold(self) -> ScalingPlan:
        """While the engines stand still all stays as it is, and the policy begins anew afterwards: what waited then
        says nothing about the load."""
        self._samples.clear()
        self._meter, self._state, self._cause = LoadMeter(), self._policy.initial_state(), Cause.PAUSED
        number = self._pool.num_wanted
        return ScalingPlan(num_replicas=number, cause=Cause.PAUSED, reason="the engines are paused")

    def collect(self) -> Iterator[Metric]:
        """The decisions, for Prometheus. Labels are of fixed sets."""
        yield GaugeMetricFamily("rlserve:wanted_replicas", "Replicas that there are to be", value=self._pool.num_wanted)
        causes = GaugeMetricFamily(
            "rlserve:scaling_cause", "1 for what the last decision about replicas rests on", labels=("cause",)
        )
        for cause in Cause:
            causes.add_metric((cause.value,), float(cause is self._cause))
        yield causes
        changes = CounterMetricFamily(
            "rlserve:scaling_changes", "Changes of the number of replicas", labels=("direction", "cause")
        )
        for direction in ("up", "down"):
            for cause in Cause:
                changes.add_metric((direction, cause.value), self._changes[direction, cause])
        yield changes

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self.step()

    def _read(self, now_s: float) -> Reading:
        pool = self._pool
        return Reading(
            time_s=now_s,
            num_ready=pool.num_ready,
            num_live_samples=pool.num_live_samples,
            num_places=pool.num_places,
            num_unplaced=pool.num_unplaced,
            engines=pool.engine_metrics,
            busy_s=pool.busy_s,
        )
