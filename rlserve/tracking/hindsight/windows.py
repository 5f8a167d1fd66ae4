"""A run cut into stretches of some steps each: what a trained group took in each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlserve.tracking.hindsight.splits import Split, SplitPiece, shares
from rlserve.tracking.jsonl import Line

MIN_STEPS = 3
"""Of a window."""
MAX_NUM_WINDOWS = 12


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some training steps, from the end of the step before them."""

    begin_s: float
    end_s: float
    num_steps: int
    num_groups: int
    """Trained."""
    generated_tokens: float
    """For each group that was finished and kept, those for dropped ones included."""
    trained_tokens: float
    """Of each trained group."""
    overhead_s: float
    """Of a step for each of its groups, besides waiting and computing: weights are copied."""
    pause_s: float
    """Training stood still for moves."""
    num_waiting: float
    """Prompt groups that waited for a replica, where there were fewest of them: with any, replicas were full."""
    splits: tuple[tuple[Split, float], ...]
    """With the share of the time that there was each."""

    @property
    def duration_s(self) -> float:
        """With all waits."""
        return self.end_s - self.begin_s

    @property
    def middle_s(self) -> float:
        """Where the window lies."""
        return (self.begin_s + self.end_s) / 2

    @property
    def num_rollout(self) -> float:
        """Gangs in rollout, in the mean."""
        return sum(split.num_rollout * share for split, share in self.splits)

    def share_of(self, split: Split) -> float:
        """Of its time with a split."""
        return sum(share for each, share in self.splits if each == split)


def window_length(num_steps: int) -> int:
    """Steps of a window in a run of so many."""
    return max(MIN_STEPS, num_steps // MAX_NUM_WINDOWS)


def cut_windows(
    events: Iterable[Line],
    pieces: Sequence[SplitPiece],
    buffered: Mapping[int, float],
    waiting: Mapping[int, float],
    *,
    last_step: float = math.inf,
) -> list[Window]:
    """All of a run but its first step, which waits for the first answers.

    Args:
        events: of the run.
        pieces: its splits.
        buffered: after some steps, by their numbers, finished groups that wait for the trainer.
        waiting: likewise, groups that wait for a replica.
        last_step: the last that counts. At the end of a run no more groups are admitted than are needed, so replicas
            run partly empty.
    """
    events = list(events)
    steps = [event for event in events if event["event"] == "step" and event["step"] <= last_step]
    length = window_length(len(steps))
    num_windows = (len(steps) - 1) // length
    windows = []
    for index in range(num_windows):
        first, last = (1 + (len(steps) - 1) * edge // num_windows for edge in (index, index + 1))
        window = _window(steps[first:last], steps[first - 1], events, pieces, buffered, waiting)
        windows += [] if window is None else [window]
    return windows


def _window(
    steps: Sequence[Line],
    before: Line,
    events: Sequence[Line],
    pieces: Sequence[SplitPiece],
    buffered: Mapping[int, float],
    waiting: Mapping[int, float],
) -> Window | None:
    """None where something was not measured."""
    begin_s, end_s = before["time_s"], steps[-1]["time_s"]
    num_groups = sum(step["num_groups"] for step in steps)
    more = buffered.get(steps[-1]["step"], 0.0) - buffered.get(before["step"], 0.0)
    num_generated = sum(
        each["num_tokens"]
        for each in events
        if each["event"] == "replica" and begin_s <= (each["begin_s"] + each["time_s"]) / 2 < end_s
    )
    if num_generated <= 0 or end_s <= begin_s:
        return None
    return Window(
        begin_s=begin_s,
        end_s=end_s,
        num_steps=len(steps),
        num_groups=num_groups,
        generated_tokens=num_generated / max(num_groups + more, 1.0),
        trained_tokens=sum(step["num_tokens"] for step in steps) / num_groups,
        overhead_s=sum(step["time_s"] - step["work_end_s"] for step in steps) / num_groups,
        pause_s=sum(
            event["trainer_pause_s"]
            for event in events
            if event["event"] == "move" and begin_s <= event["time_s"] < end_s
        ),
        num_waiting=min(waiting.get(step["step"], 0.0) for step in (before, *steps)),
        splits=shares(pieces, begin_s, end_s),
    )
