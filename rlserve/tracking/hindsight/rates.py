"""The rate at which a split trains prompt groups under the load of a window, from what the run measured.

::

    generating   min over both, groups a second      n replicas share the samples S that run at once: b = S / n each,
    training     ◄────────────────────────────       and a step of theirs takes t0 + t1 b, a line for each type;
                                                     a trained token takes a / T + c on T gangs

S is what ran at once in the window where most did: what is admitted is bounded, and the more of it waits for the
trainer, the less is generated. Where groups waited for a replica, replicas were full: what each ran then is the most
that it runs, which is less than its limit where answers of one group end at different times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlserve.tracking.hindsight.lines import Point, Straight, fitted
from rlserve.tracking.hindsight.splits import Split, split_of
from rlserve.tracking.hindsight.windows import Window
from rlserve.tracking.jsonl import Line
from rlserve.tracking.timeline.ownership import SlotTimeline

_BATCH_SHARE = 0.5
"""Of a decoding step's time that grows with its batch, where that was not measured."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured over the whole run."""

    decoding: Mapping[str, Straight]
    """Seconds of a step over its batch, by type."""
    training: Straight
    """Seconds of a trained token over 1 / number of gangs."""
    num_samples: float
    """That run at once."""
    max_batch: float
    """Samples that a replica computes at once."""

    def of(self, window: Window, split: Split) -> float:
        """Prompt groups a second."""
        return min(self.generated(window, split), self.trained(window, split))

    def in_window(self, window: Window) -> float:
        """With the splits that there were."""
        return sum(share * self.of(window, split) for split, share in window.splits)

    def generated(self, window: Window, split: Split) -> float:
        """Groups kept a second, if the trainer took them all."""
        if split.num_rollout <= 0:
            return 0.0
        batch = min(self.max_batch, self.num_samples / split.num_rollout)
        tokens_per_s = sum(number * batch / self._line(name).at(batch) for name, number in split.rollout)
        return tokens_per_s / window.generated_tokens

    def trained(self, window: Window, split: Split) -> float:
        """Groups trained a second, if there were always enough."""
        if split.num_train <= 0:
            return 0.0
        return 1.0 / (window.trained_tokens * self.training.at(1.0 / split.num_train) + window.overhead_s)

    def by_type(self, num_rollout: float, gangs: Sequence[str]) -> Split:
        """The split with so many in rollout; the types that decode quickest first."""
        batch = min(self.max_batch, self.num_samples / max(num_rollout, 1.0))
        rest, rollout = num_rollout, dict[str, float]()
        for name in sorted(gangs, key=lambda name: (self._line(name).at(batch), name)):
            taken = min(rest, 1.0)
            rollout[name] = rollout.get(name, 0.0) + taken
            rest -= taken
        return split_of(len(gangs) - num_rollout, rollout)

    def _line(self, type_name: str) -> Straight:
        """Types that never generated count as the slowest of those that did."""
        if type_name in self.decoding:
            return self.decoding[type_name]
        return max(self.decoding.values(), key=lambda line: line.at(min(self.max_batch, self.num_samples)))


def measured_rates(
    rows: Sequence[SlotTimeline], events: Sequence[Line], windows: Sequence[Window], *, max_batch: float
) -> Rates | None:
    """None where a role was not seen at work."""
    types = {row.slot_id: row.slot_type for row in rows}
    gangs = {row.slot_id: row.gang_id for row in rows}
    decoding: dict[str, list[Point]] = {}
    for event in events:
        if event["event"] == "replica" and min(event["busy_s"], event["running_s"], event["num_tokens"]) > 0:
            point = (event["running_s"] / event["busy_s"], event["running_s"] / event["num_tokens"], event["busy_s"])
            decoding.setdefault(types[event["slot_id"]], []).append(point)
    training: list[Point] = []
    for event in events:
        work_s = event["work_end_s"] - event["work_begin_s"] if event["event"] == "step" else 0.0
        if work_s > 0:
            num_gangs = len({gangs[slot_id] for slot_id in event["slot_ids"]})
            training.append((1.0 / num_gangs, work_s / event["num_tokens"], event["num_tokens"]))
    if not decoding or not training or not windows:
        return None
    num_running = [_num_running(window, events) for window in windows]
    full = [
        number / window.num_rollout
        for number, window in zip(num_running, windows, strict=True)
        if window.num_waiting > 0 and window.num_rollout > 0
    ]
    return Rates(
        decoding={name: fitted(points, proportional=_BATCH_SHARE) for name, points in decoding.items()},
        training=fitted(training[1:] or training, proportional=1.0),
        num_samples=max(num_running),
        max_batch=min(max_batch, max(full, default=max_batch)),
    )


def _num_running(window: Window, events: Sequence[Line]) -> float:
    """Samples at once, in the mean."""
    running_s = sum(
        event["running_s"]
        for event in events
        if event["event"] == "replica" and window.begin_s <= (event["begin_s"] + event["time_s"]) / 2 < window.end_s
    )
    return max(float(running_s) / window.duration_s, 1.0)
