"""What a run's decisions were and what they came to, in the order of time. Pure functions of the lines of its files.

Whatever a run was when it stopped writing, its lines up to there can be explained: a move without an end was under way,
one without an outcome had too few training steps after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlserve.tracking.move_outcomes import find_outcome

Record = Mapping[str, Any]
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
_OWNERS = {"to_rollout": "rollout", "to_train": "train"}


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

    @property
    def grounds(self) -> str:
        """The reason without its numbers."""
        return _NUMBER.sub("#", self.reason)


@dataclass(frozen=True, kw_only=True)
class Move:
    """A move: what was expected of it, and what it came to. Rates are prompt groups trained in a second, gains and
    costs prompt groups; None is not known, or not predicted."""

    time_s: float
    step: int
    action: Literal["to_rollout", "to_train"]
    slot_id: str
    reason: str
    num_train: int
    """Before it."""
    num_rollout: int
    duration_s: float | None
    """From the end of its old role; None where the slot did not get the new one before something else happened."""
    lasted_s: float
    """From its end to the next move, or to the end of what was written."""
    predicted_rate_before: float | None
    predicted_rate_after: float | None
    predicted_gain: float | None
    predicted_cost: float | None
    horizon_s: float | None
    waited_s: float = 0.0
    """From the decision on, in its old role: for a training step to end."""
    trainer_pause_s: float | None = None
    rate_before: float | None = None
    rate_after: float | None = None
    """At the load of before."""
    load: float | None = None
    cost: float | None = None
    num_steps_after: int = 0

    @property
    def end_s(self) -> float:
        """When it got the role; when it was decided on, where it did not."""
        return self.time_s + self.waited_s + (self.duration_s or 0.0)

    @property
    def gain(self) -> float | None:
        """Prompt groups more than without it, its cost taken off, until the next move."""
        return None if self.cost is None else self.rate_change * self.lasted_s - self.cost

    def gain_until(self, end_s: float) -> float | None:
        """The same until later, were nothing else moved."""
        rest_s = end_s - self.end_s
        return None if self.gain is None else self.gain + self.rate_change * (rest_s - self.lasted_s)

    @property
    def rate_change(self) -> float:
        """0 where it could not be judged."""
        return 0.0 if self.rate_before is None or self.rate_after is None else self.rate_after - self.rate_before


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A run's decisions."""

    name: str
    policy: str
    num_steps: int
    num_groups: int | None
    """Trained in all; None where the configuration does not tell."""
    begin_s: float
    """When the manager began to decide."""
    end_s: float
    entries: tuple[Hold | Move, ...]
    is_over: bool

    @property
    def moves(self) -> tuple[Move, ...]:
        """All of them."""
        return tuple(entry for entry in self.entries if isinstance(entry, Move))

    @property
    def moving_s(self) -> float:
        """Seconds in which a slot was on its way."""
        return sum(move.duration_s or 0.0 for move in self.moves)

    @property
    def moving_share(self) -> float:
        """Of the time since the manager began to decide."""
        return self.moving_s / (self.end_s - self.begin_s) if self.end_s > self.begin_s else 0.0

    @property
    def gain_against_start(self) -> float | None:
        """Prompt groups more than the split of the start would have trained; None unless every move could be judged:
        one that is left out may have been the one that mattered. What a move gained lasts until the end, whatever comes
        after it."""
        gains = [gain for move in self.moves if (gain := move.gain_until(self.end_s)) is not None]
        return sum(gains) if gains and len(gains) == len(self.moves) else None


def explain(
    name: str,
    *,
    decisions: Sequence[Record],
    events: Sequence[Record],
    config: Mapping[str, Any],
    last_step: tuple[int, float],
) -> Explanation:
    """The story of a run. ``last_step`` is the number of the last training step that was written, and its time."""
    step, step_s = last_step
    times_s = [record["time_s"] for record in (*decisions, *events)]
    end_s = max([*times_s, step_s], default=0.0)
    prompts_per_step = config.get("rollout", {}).get("prompts_per_step")
    return Explanation(
        name=name,
        policy=str(config.get("manager", {}).get("policy", "rate_matching")),
        num_steps=step,
        num_groups=None if prompts_per_step is None else step * prompts_per_step,
        begin_s=min((record["time_s"] for record in decisions), default=0.0),
        end_s=end_s,
        entries=tuple(_entries(decisions, events, end_s)),
        is_over=bool(events) and events[-1]["event"] == "end",
    )


_JUDGED = ("trainer_pause_s", "rate_before", "rate_after", "load", "cost", "num_steps_after")
"""What a move takes over from its outcome."""


def _entries(decisions: Sequence[Record], events: Sequence[Record], end_s: float) -> list[Hold | Move]:
    entries: list[Hold | Move] = []
    outcomes = [event for event in events if event["event"] == "outcome"]
    for index, decision in enumerate(decisions):
        until_s = decisions[index + 1]["time_s"] if index + 1 < len(decisions) else end_s
        if decision["action"] != "hold":
            later = [each for each in decisions[index + 1 :] if each["action"] != "hold"]
            next_s = later[0]["time_s"] if later else end_s
            entries.append(_move(decision, events, next_s, find_outcome(decision, later, outcomes)))
            continue
        hold = _hold(decision, until_s)
        before = entries[-1] if entries else None
        if isinstance(before, Move) and before.duration_s is not None:
            hold = replace(hold, begin_s=max(hold.begin_s, before.end_s))
        if isinstance(before, Hold) and _is_same(before, hold):
            entries[-1] = replace(hold, begin_s=before.begin_s)
        else:
            entries.append(hold)
    return entries


def _is_same(one: Hold, other: Hold) -> bool:
    return (one.grounds, one.num_train, one.num_rollout) == (other.grounds, other.num_train, other.num_rollout)


def _hold(decision: Record, until_s: float) -> Hold:
    return Hold(
        begin_s=decision["time_s"],
        end_s=until_s,
        num_train=decision["num_train"],
        num_rollout=decision["num_rollout"],
        reason=decision["reason"],
        rate_now=decision.get("rate_now"),
        rate_after=decision.get("rate_after"),
    )


def _move(decision: Record, events: Sequence[Record], next_s: float, outcome: Record | None) -> Move:
    decided_s, action = decision["time_s"], decision["action"]
    own = [
        event
        for event in events
        if event["event"] == "slot"
        and event["gang_id"] == decision["slot_id"]
        and decided_s <= event["time_s"] <= next_s
    ]
    arrived_s = next((event["time_s"] for event in own if event["owner"] == _OWNERS[action]), None)
    end_s = decided_s if arrived_s is None else arrived_s
    left_s = (event["time_s"] for event in own if event["owner"] == "moving" and event["time_s"] <= end_s)
    begin_s = next(left_s, decided_s)
    return Move(
        time_s=decided_s,
        step=decision["step"],
        action=action,
        slot_id=decision["slot_id"],
        reason=decision["reason"],
        num_train=decision["num_train"],
        num_rollout=decision["num_rollout"],
        duration_s=None if arrived_s is None else end_s - begin_s,
        waited_s=0.0 if arrived_s is None else begin_s - decided_s,
        lasted_s=max(next_s - end_s, 0.0),
        predicted_rate_before=decision.get("rate_now"),
        predicted_rate_after=decision.get("rate_after"),
        predicted_gain=decision.get("gain"),
        predicted_cost=decision.get("cost"),
        horizon_s=decision.get("horizon_s"),
        **({} if outcome is None else {name: outcome[name] for name in _JUDGED}),
    )
