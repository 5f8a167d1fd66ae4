"""How the run stands, written down once a second for ``rlserve top`` and ``rlserve dashboard``."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from rlserve.controller.context import RunContext
from rlserve.controller.display import RunDisplay
from rlserve.controller.gang_book import ROLES, GangBook
from rlserve.controller.load import LoadReader
from rlserve.controller.replicas import Replicas
from rlserve.controller.scale_out import ScaleOut
from rlserve.controller.weight_source import WeightSource
from rlserve.manager.gang_table import GangState
from rlserve.pool.base import RolloutStats
from rlserve.pool.gangs import Gang
from rlserve.pool.worker_table import WorkerState
from rlserve.tracking.live import LiveGang, LiveShare, LiveState
from rlserve.tracking.share_event import ShareEvent
from rlserve.tracking.tracker import Tracker

INTERVAL_S = 1.0
NUM_READINGS = 6
"""A rate is over so many readings: the engines are asked once a second, so over fewer it would flicker."""


class WindowRate:
    """How fast a total grows, per second, over the last readings."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=NUM_READINGS)

    def update(self, time_s: float, total: float) -> float | None:
        """Take a reading; None before there are two. A total that has shrunk has begun anew."""
        if self._readings and total < self._readings[-1][1]:
            self._readings.clear()
        self._readings.append((time_s, total))
        (first_s, first), (last_s, last) = self._readings[0], self._readings[-1]
        return None if last_s <= first_s else (last - first) / (last_s - first_s)


class LiveReporter:
    """Reads the parts that own the numbers, and shows them to the tracker."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        *,
        load: LoadReader,
        replicas: Replicas,
        weights: WeightSource,
        display: RunDisplay,
        tracker: Tracker,
        scale_out: ScaleOut | None = None,
    ) -> None:
        self._run = run
        self._book = book
        self._load = load
        self._replicas = replicas
        self._weights = weights
        self._display = display
        self._tracker = tracker
        self._scale_out = scale_out
        self._rate = WindowRate()
        self._gang_rates: dict[str, WindowRate] = {}
        self._share: LiveShare | None = None
        run.events.subscribe(ShareEvent, self._note_share)

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._tracker.show(self.read())
            await asyncio.sleep(INTERVAL_S)

    def read(self) -> LiveState:
        """The run now; rates are over the last few times that it was read."""
        now, load, stats = self._run.clock.now(), self._load.read(), self._replicas.stats
        self._gang_rates = {slot_id: self._gang_rates.get(slot_id, WindowRate()) for slot_id in stats}
        return LiveState(
            time_s=now,
            status=self._display.status,
            queue_length=load.num_waiting,
            num_in_flight=load.num_in_flight,
            num_buffered=load.num_buffered,
            trainer_waiting=load.trainer_waiting,
            weight_version=None if self._weights.version < 0 else self._weights.version,
            tokens_per_s=self._rate.update(now, self._replicas.num_generated_tokens),
            gangs=tuple(self._gang(gang, stats.get(gang.leader)) for gang in self._book.present),
            scale_out=None if self._scale_out is None else self._scale_out.live(),
            share=self._share,
        )

    def _note_share(self, event: ShareEvent) -> None:
        self._share = LiveShare(num_lent=event.num_lent, num_borrowed=event.num_borrowed, runs=event.runs)

    def _gang(self, gang: Gang, stats: RolloutStats | None) -> LiveGang:
        state = self._book.state(gang)
        shown = LiveGang(id=gang.id, type=gang.slots[0].type.name, num_slots=len(gang.slots), state=str(state))
        worst = self._book.workers.worst(gang.slot_ids)
        if state in ROLES and worst is not WorkerState.HEALTHY:
            shown = replace(shown, worker_state=str(worst))
        if state is GangState.TRAIN:
            return replace(shown, version=self._run.counters.num_steps)
        if stats is None:
            return shown
        return replace(
            shown,
            version=stats.weight_version,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_cache_usage=stats.kv_cache_usage,
            tokens_per_s=self._gang_rates[gang.leader].update(self._run.clock.now(), stats.num_generated_tokens),
        )
