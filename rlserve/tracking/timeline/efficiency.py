"""How a run compares with what its slots could have done, by the rates that the run itself measured. Pure functions.

The run is cut into windows. In each, a prompt group that is trained takes so many generated tokens (all that were
generated, also for groups that were dropped) and so much time of a training slot. Over the whole run, a slot of a type
generates so many tokens in a second of computing. With ``n`` slots in rollout, taken in the order of that rate, and the
others training, the rate of trained groups is the lower of the two sides'.

- The fluid oracle takes the best ``n`` of each window, fractions allowed, and switches at no cost: no policy is above
  it.
- The best static split takes the whole ``n`` that is best for the run in hindsight.

Both rest on slots that do not slow each other down, and on the batches that were; where two slots share a processor
they promise too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlserve.tracking.jsonl import Line
from rlserve.tracking.timeline.ownership import SlotTimeline

STEPS_A_WINDOW = 5
MAX_NUM_WINDOWS = 12
_NUM_HALVINGS = 50


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Prompt groups trained in a second."""

    realised: float
    best_static: float
    best_static_num_rollout: int
    """Slots in rollout of that split."""
    oracle: float


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is known of a part of the run."""

    duration_s: float
    tokens_per_group: float
    """Generated for each group that was trained."""
    groups_per_slot_s: float
    """Trained in a second by each slot that trains."""


def efficiency(rows: Sequence[SlotTimeline], events: Iterable[Line]) -> Efficiency | None:
    """Of a whole run; None where too little was measured."""
    events = list(events)
    steps = [event for event in events if event["event"] == "step"]
    stretches = [event for event in events if event["event"] == "replica"]
    rates = generation_rates(rows, stretches)
    windows = _windows(steps, stretches)
    if not windows or len(rates) < 2:
        return None
    whole_s = sum(window.duration_s for window in windows)
    static = [
        (sum(window.duration_s * _rate(window, rates, float(num)) for window in windows) / whole_s, num)
        for num in range(1, len(rates))
    ]
    best, num_rollout = max(static)
    return Efficiency(
        realised=sum(step["num_groups"] for step in steps) / whole_s,
        best_static=best,
        best_static_num_rollout=num_rollout,
        oracle=sum(window.duration_s * oracle_rate(window, rates) for window in windows) / whole_s,
    )


def generation_rates(rows: Sequence[SlotTimeline], stretches: Iterable[Line]) -> list[float]:
    """Tokens that each slot generates in a second of computing, the quickest first; a slot whose type never generated
    counts as the slowest of those that did."""
    gang_of = {row.slot_id: row.gang_id for row in rows}
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.gang_id] = sizes.get(row.gang_id, 0) + 1
    type_of = {row.slot_id: row.slot_type for row in rows}
    tokens: dict[str, float] = {}
    slot_s: dict[str, float] = {}
    for each in stretches:
        kind, size = type_of[each["slot_id"]], sizes[gang_of[each["slot_id"]]]
        tokens[kind] = tokens.get(kind, 0.0) + each["num_tokens"]
        slot_s[kind] = slot_s.get(kind, 0.0) + each["busy_s"] * size
    measured: Mapping[str, float] = {kind: tokens[kind] / slot_s[kind] for kind in tokens if slot_s[kind] > 0}
    if not measured:
        return []
    return sorted((measured.get(row.slot_type, min(measured.values())) for row in rows), reverse=True)


def oracle_rate(window: Window, rates: Sequence[float]) -> float:
    """The highest rate of any split, fractions of slots allowed: where both sides are as quick as each other."""
    low, high = 0.0, float(len(rates))
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        if _generated(window, rates, middle) < _trained(window, rates, middle):
            low = middle
        else:
            high = middle
    return _rate(window, rates, low)


def _rate(window: Window, rates: Sequence[float], num_rollout: float) -> float:
    return min(_generated(window, rates, num_rollout), _trained(window, rates, num_rollout))


def _generated(window: Window, rates: Sequence[float], num_rollout: float) -> float:
    whole = int(num_rollout)
    part = (num_rollout - whole) * rates[whole] if whole < len(rates) else 0.0
    return (sum(rates[:whole]) + part) / window.tokens_per_group


def _trained(window: Window, rates: Sequence[float], num_rollout: float) -> float:
    return (len(rates) - num_rollout) * window.groups_per_slot_s


def _windows(steps: Sequence[Line], stretches: Sequence[Line]) -> list[Window]:
    """Stretches of as many steps each; a stretch of a replica belongs where its middle lies."""
    num_windows = min(len(steps) // STEPS_A_WINDOW, MAX_NUM_WINDOWS)
    windows = []
    for index in range(num_windows):
        first, last = (len(steps) * edge // num_windows for edge in (index, index + 1))
        own = steps[first:last]
        begin_s, end_s = own[0]["begin_s"], own[-1]["time_s"]
        num_tokens = sum(
            each["num_tokens"] for each in stretches if begin_s <= (each["begin_s"] + each["time_s"]) / 2 < end_s
        )
        num_groups = sum(step["num_groups"] for step in own)
        slot_s = sum((step["work_end_s"] - step["work_begin_s"]) * len(step["slot_ids"]) for step in own)
        if min(num_tokens, num_groups, slot_s, end_s - begin_s) <= 0:
            return []
        windows.append(
            Window(
                duration_s=end_s - begin_s,
                tokens_per_group=num_tokens / num_groups,
                groups_per_slot_s=num_groups / slot_s,
            )
        )
    return windows
