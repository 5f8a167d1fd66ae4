"""Replicas: what each does lately, and how a decoding step of its type grows with the batch.

Between two polls of a replica lie its computing time, the tokens it made and the batch it made them with. A step makes
one token a sample, so with ``b`` samples and ``r`` tokens per second a step took ``b / r`` seconds. Moments of ``b``
and ``b / r`` over all replicas of a type give the line ``t0 + t1 b`` that the policy extrapolates on; old ones fade.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from rlserve.manager.measurement.figures import DecodeCurve, ReplicaRate
from rlserve.manager.measurement.readings import ReplicaPolled

_RATE_S = 60.0
"""Time constant of what a replica did lately."""
_CURVE_S = 1200.0
"""Computing time after which what was seen of a type counts a third as much: hardware does not change, the context that
samples carry does."""
_SILENT_S = 60.0
"""A replica that has not been polled for so long has left."""
_NUM_REPLICAS = 4096


@dataclass
class _Lately:
    """Sums of one replica that fade with time."""

    poll: ReplicaPolled
    time_s: float = 0.0
    busy_s: float = 0.0
    running_s: float = 0.0
    num_tokens: float = 0.0
    uncounted_busy_s: float = 0.0
    """Since tokens were last seen to be made: they may be told of when an answer ends."""
    uncounted_running_s: float = 0.0

    def rate(self) -> ReplicaRate:
        """As the policy is shown it."""
        poll, busy_s = self.poll, self.busy_s
        return ReplicaRate(
            gang_id=poll.gang_id,
            type=poll.type,
            num_running=poll.num_running,
            num_waiting=poll.num_waiting,
            kv_cache_usage=poll.kv_cache_usage,
            busy_share=min(1.0, busy_s / self.time_s) if self.time_s else 0.0,
            tokens_per_s=self.num_tokens / busy_s if busy_s else None,
            mean_running=self.running_s / busy_s if busy_s else None,
        )


@dataclass
class _Moments:
    """Of batch and step time, weighted by computing time (West 1979)."""

    weight: float = 0.0
    batch: float = 0.0
    step_s: float = 0.0
    batch_squares: float = 0.0
    products: float = 0.0

    def add(self, batch: float, step_s: float, weight: float) -> None:
        """Take a point in after letting those before fade."""
        fade = math.exp(-weight / _CURVE_S)
        self.weight = self.weight * fade + weight
        self.batch_squares *= fade
        self.products *= fade
        off, off_s = batch - self.batch, step_s - self.step_s
        self.batch += off * weight / self.weight
        self.step_s += off_s * weight / self.weight
        self.batch_squares += weight * off * (batch - self.batch)
        self.products += weight * off_s * (batch - self.batch)


class ReplicaMeter:
    """All replicas."""

    def __init__(self) -> None:
        self._replicas: OrderedDict[str, _Lately] = OrderedDict()
        self._types: dict[str, _Moments] = {}

    def note(self, poll: ReplicaPolled) -> None:
        """Take a poll in; one that takes up the role again counts from there."""
        lately = self._replicas.get(poll.gang_id)
        if lately is None or lately.poll.since_s != poll.since_s:
            self._replicas[poll.gang_id] = _Lately(poll)
            self._replicas.move_to_end(poll.gang_id)
            if len(self._replicas) > _NUM_REPLICAS:
                self._replicas.popitem(last=False)
            return
        before, lately.poll = lately.poll, poll
        time_s, busy_s = poll.time_s - before.time_s, poll.busy_s - before.busy_s
        if time_s <= 0.0:
            return
        num_tokens = poll.num_generated_tokens - before.num_generated_tokens
        running_s = poll.running_s - before.running_s
        fade = math.exp(-time_s / _RATE_S)
        lately.time_s = lately.time_s * fade + time_s
        lately.busy_s = lately.busy_s * fade + busy_s
        lately.running_s = lately.running_s * fade + running_s
        lately.num_tokens = lately.num_tokens * fade + num_tokens
        lately.uncounted_busy_s += busy_s
        lately.uncounted_running_s += running_s
        if num_tokens > 0 and lately.uncounted_busy_s > 0.0 and lately.uncounted_running_s > 0.0:
            busy_s, running_s = lately.uncounted_busy_s, lately.uncounted_running_s
            lately.uncounted_busy_s = lately.uncounted_running_s = 0.0
            self._types.setdefault(poll.type, _Moments()).add(running_s / busy_s, running_s / num_tokens, busy_s)

    def forget(self, gang_id: str) -> None:
        """It is no replica any more."""
        self._replicas.pop(gang_id, None)

    def rates(self, now_s: float) -> tuple[ReplicaRate, ...]:
        """Of those that were polled lately."""
        for gang_id in [each.poll.gang_id for each in self._replicas.values() if now_s - each.poll.time_s > _SILENT_S]:
            self.forget(gang_id)
        return tuple(each.rate() for each in self._replicas.values())

    def curves(self) -> tuple[DecodeCurve, ...]:
        """Of each type that was seen."""
        return tuple(
            DecodeCurve(
                type=name,
                busy_s=seen.weight,
                mean_batch=seen.batch,
                mean_step_s=seen.step_s,
                batch_variance=seen.batch_squares / seen.weight,
                covariance=seen.products / seen.weight,
            )
            for name, seen in self._types.items()
        )
