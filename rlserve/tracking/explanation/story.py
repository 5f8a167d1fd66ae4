"""What a run's decisions were and what they came to, in the order of time. Pure functions of the lines of its files.

Whatever a run was when it stopped writing, its lines up to there can be explained: a move without an end was under way,
and what moves came to is told as far as the training steps after them allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlserve.tracking.hindsight.judgement import Judged, Judgement, judge
from rlserve.tracking.hindsight.series import Move, Series
from rlserve.tracking.jsonl import Line
from rlserve.tracking.paced import is_paced

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A time in which nothing moved, all of it for one reason."""

    begin_s: float
    end_s: float
    num_train: int
    num_rollout: int
    reason: str
    """In the words of the last time that it was written."""
    rate_now: float | None
    rate_after: float | None
    """Of the best move that was left."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A run's decisions."""

    name: str
    policy: str
    num_steps: int
    begin_s: float
    """When the manager began to decide."""
    end_s: float
    entries: tuple[Hold | Judged, ...]
    """What lies between the moves of a series is part of it."""
    within: tuple[tuple[Hold, ...], ...]
    """Of each series, the times between its moves."""
    judgement: Judgement
    turns_s: tuple[float, ...]
    """What each change of turn took, where all slots have both roles in turn."""
    wait_share: float | None
    """Of the trainer's time, that it waited for answers; None before the first step."""
    busy_share: float | None
    """Of the replicas' time, that they computed."""
    is_paced: bool
    """Times are those of the accelerators that it models."""
    host_was_bottleneck: bool
    is_over: bool

    @property
    def moves(self) -> tuple[Move, ...]:
        """All of them."""
        return tuple(move for judged in self.judgement.series for move in judged.series.moves)

    @property
    def moving_s(self) -> float:
        """Seconds in which slots were on their way."""
        return sum(move.duration_s or 0.0 for move in self.moves)

    @property
    def moving_share(self) -> float:
        """Of the time since the manager began to decide."""
        return self.moving_s / (self.end_s - self.begin_s) if self.end_s > self.begin_s else 0.0


def explain(
    name: str,
    *,
    decisions: Sequence[Line],
    events: Sequence[Line],
    metrics: Sequence[Line],
    config: Mapping[str, Any],
    host_was_bottleneck: bool = False,
) -> Explanation:
    """The story of a run, from the lines of its files and its configuration as far as it is known."""
    judgement = judge(decisions=decisions, events=events, metrics=metrics, config=config)
    end_s = max((record["time_s"] for record in (*decisions, *events)), default=0.0)
    all_series = [judged.series for judged in judgement.series]
    holds = _holds(decisions, all_series, end_s)
    within = tuple(
        tuple(hold for hold in holds if series.begin_s <= hold.begin_s and hold.end_s <= series.moves[-1].time_s)
        for series in all_series
    )
    outside = [hold for hold in holds if not any(hold in each for each in within)]
    entries: list[Hold | Judged] = [*outside, *judgement.series]
    return Explanation(
        name=name,
        policy=str(config.get("manager", {}).get("policy", "rate_matching")),
        num_steps=max((int(record["step"]) for record in metrics), default=0),
        begin_s=min((record["time_s"] for record in decisions), default=0.0),
        end_s=end_s,
        entries=tuple(sorted(entries, key=_begin_s)),
        within=within,
        judgement=judgement,
        turns_s=tuple(event["time_s"] - event["begin_s"] for event in events if event["event"] == "turn"),
        wait_share=_share(
            (event["work_begin_s"] - event["begin_s"], event["time_s"] - event["begin_s"])
            for event in events
            if event["event"] == "step"
        ),
        busy_share=_share(
            (event["busy_s"], event["time_s"] - event["begin_s"]) for event in events if event["event"] == "replica"
        ),
        is_paced=is_paced(config),
        host_was_bottleneck=host_was_bottleneck,
        is_over=bool(events) and events[-1]["event"] == "end",
    )


def _holds(decisions: Sequence[Line], all_series: Sequence[Series], end_s: float) -> list[Hold]:
    """Neighbours for one reason are one; what a move takes is none."""
    arrivals_s = {move.time_s: move.end_s for series in all_series for move in series.moves}
    holds: list[Hold] = []
    arrived_s, follows_move = 0.0, False
    for index, decision in enumerate(decisions):
        until_s = decisions[index + 1]["time_s"] if index + 1 < len(decisions) else end_s
        if decision["action"] != "hold":
            arrived_s, follows_move = arrivals_s[decision["time_s"]], True
            continue
        if decision["time_s"] < arrived_s and until_s <= arrived_s:
            continue
        hold = _hold(decision, max(decision["time_s"], arrived_s), until_s)
        if holds and not follows_move and _is_same(holds[-1], hold):
            holds[-1] = replace(hold, begin_s=holds[-1].begin_s)
        else:
            holds.append(hold)
        follows_move = False
    return holds


def grounds(reason: str) -> str:
    """A reason without its numbers."""
    return _NUMBER.sub("#", reason)


def _is_same(one: Hold, other: Hold) -> bool:
    splits = [(hold.num_train, hold.num_rollout) for hold in (one, other)]
    return splits[0] == splits[1] and grounds(one.reason) == grounds(other.reason)


def _hold(decision: Line, begin_s: float, until_s: float) -> Hold:
    return Hold(
        begin_s=begin_s,
        end_s=until_s,
        num_train=decision["num_train"],
        num_rollout=decision["num_rollout"],
        reason=decision["reason"],
        rate_now=decision["rate_now"],
        rate_after=decision["rate_after"],
    )


def _begin_s(entry: Hold | Judged) -> float:
    return entry.begin_s if isinstance(entry, Hold) else entry.series.begin_s


def _share(parts: Iterable[tuple[float, float]]) -> float | None:
    """Of pairs of a part and the whole; a part that was told late counts no more than the whole."""
    pairs = list(parts)
    whole = sum(each for _, each in pairs)
    return min(sum(part for part, _ in pairs) / whole, 1.0) if whole > 0 else None
