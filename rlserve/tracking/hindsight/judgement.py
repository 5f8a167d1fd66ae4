"""What a run's moves came to, series by series and all together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlserve.roofline.accelerators import is_cpu, is_paced
from rlserve.tracking import names
from rlserve.tracking.hindsight.comparison import Comparison, Hindsight, look_back
from rlserve.tracking.hindsight.efficiency import Efficiency, efficiency
from rlserve.tracking.hindsight.rates import measured_rates
from rlserve.tracking.hindsight.series import Series, read_moves, series_of
from rlserve.tracking.hindsight.splits import Split, SplitPiece, split_at, split_pieces
from rlserve.tracking.hindsight.windows import Window, cut_windows, window_length
from rlserve.tracking.jsonl import Line
from rlserve.tracking.timeline.ownership import SlotTimeline, slot_timelines

_UNBOUNDED = 4096.0
"""Samples of a replica where the configuration does not tell."""
_MOST_AT_END = 0.25
"""Share of a run that is its end."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A series, and what came of it. Rates are prompt groups trained in a second."""

    series: Series
    before: Split | None
    """The split that it began with."""
    rate_before: float | None
    """In the windows since the series before it; None where there are none."""
    rate_after: float | None
    after: Comparison | None
    """From its end to the next series, against the split before; None where it cannot be told."""
    whole: Comparison | None
    """The same with the time that the moves took."""

    @property
    def load(self) -> float | None:
        """Time that a trained group takes afterwards by that before, both with the split before: above 1, answers have
        become longer, or fewer are kept."""
        if self.after is None or not self.rate_before:
            return None
        return self.rate_before / self.after.would_rate


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Of a run."""

    series: tuple[Judged, ...]
    start: Split | None
    """The first split."""
    against_start: Comparison | None
    """The whole run against it; None where it cannot be told, or nothing moved."""
    efficiency: Efficiency | None
    shares_processors: bool
    """Slots are CPU processes that slow each other down, so other splits promise too much."""
    min_steps: int
    """Training steps between two moves with which something can be told."""


def judge(
    *, decisions: Sequence[Line], events: Sequence[Line], metrics: Sequence[Line], config: Mapping[str, Any]
) -> Judgement:
    """From the lines of a run's files, also of one that goes on, and its configuration as far as it is known."""
    end_s = max((line["time_s"] for line in (*decisions, *events)), default=0.0)
    rows = slot_timelines(events, end_s)
    pieces = split_pieces(rows)
    buffered, waiting = (_after_steps(metrics, name) for name in (names.NUM_BUFFERED, names.QUEUE_LENGTH))
    rollout = config.get("rollout", {})
    last_step = _last_step(config.get("num_steps", math.inf), rollout.get("max_staleness", 0))
    windows = cut_windows(events, pieces, buffered, waiting, last_step=last_step)
    max_batch = rollout.get("engine", {}).get("max_num_sequences", _UNBOUNDED)
    rates = measured_rates(rows, events, windows, max_batch=float(max_batch))
    hindsight = look_back(rates, windows, _gangs(rows))
    moves, num_steps = read_moves(decisions, events, end_s), sum(event["event"] == "step" for event in events)
    length = window_length(num_steps)
    all_series = series_of(moves, num_steps=length, end_s=end_s)
    start = split_at(pieces, all_series[0].begin_s) if all_series else None
    return Judgement(
        series=tuple(_judged(each, pieces, windows, hindsight) for each in all_series),
        start=start,
        against_start=hindsight.compare(windows, start) if hindsight and start else None,
        efficiency=efficiency(hindsight) if hindsight else None,
        shares_processors=any(is_cpu(row.slot_type) and not is_paced(row.slot_type) for row in rows),
        min_steps=length,
    )


def _judged(
    series: Series, pieces: Sequence[SplitPiece], windows: Sequence[Window], hindsight: Hindsight | None
) -> Judged:
    before = split_at(pieces, series.begin_s)
    own = [window for window in windows if series.begin_s <= window.middle_s < series.until_s]
    after = [window for window in own if window.middle_s >= series.end_s]
    earlier = [
        window for window in windows if before and window.end_s <= series.begin_s and window.share_of(before) > 0.5
    ]
    compare = (
        (lambda windows: None) if hindsight is None or before is None else partial(hindsight.compare, split=before)
    )
    return Judged(
        series=series,
        before=before,
        rate_before=_rate(earlier),
        rate_after=_rate(after),
        after=compare(after),
        whole=compare(own) if after else None,
    )


def _rate(windows: Sequence[Window]) -> float | None:
    """Prompt groups a second; None without windows."""
    duration_s = sum(window.duration_s for window in windows)
    return sum(window.num_groups for window in windows) / duration_s if duration_s > 0 else None


def _last_step(num_steps: float, max_staleness: int) -> float:
    """Before the end, when as many batches are still to be trained as may be under way."""
    return num_steps - min(max_staleness, num_steps * _MOST_AT_END)


def _after_steps(metrics: Sequence[Line], name: str) -> dict[int, float]:
    """A metric after each step that has it."""
    return {record["step"]: record[name] for record in metrics if record.get(name) is not None}


def _gangs(rows: Sequence[SlotTimeline]) -> tuple[str, ...]:
    """The type of each."""
    return tuple({row.gang_id: row.slot_type for row in rows}.values())
