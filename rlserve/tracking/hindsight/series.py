"""Moves that belong together: in one direction, each before the one before it could show what it brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlserve.tracking.jsonl import Line

_OWNERS = {"to_rollout": "rollout", "to_train": "train"}


@dataclass(frozen=True, kw_only=True)
class Move:
    """One decision to move slots. Rates are prompt groups trained in a second; None is not known, or not predicted."""

    time_s: float
    step: int
    """Training steps done."""
    action: Literal["to_rollout", "to_train"]
    slot_id: str
    reason: str
    num_train: int
    """Before it."""
    num_rollout: int
    waited_s: float
    """From the decision on, in their old role: for a training step to end."""
    duration_s: float | None
    """From the end of their old role; None where the slots did not get the new one before something else happened, or
    are under way."""
    has_left: bool
    """The slots have left their old role: until then, a move is called off where the pool changes."""
    trainer_pause_s: float | None
    """How long training stood still for it."""
    rate_now: float | None
    rate_after: float | None
    """Predicted, also of more moves if it is the first of several."""
    gain: float | None
    """Predicted: prompt groups more over the horizon."""
    cost: float | None
    """Predicted: prompt groups."""
    horizon_s: float | None
    target_num_rollout: int | None
    num_steps_after: int
    """Training steps that began after it, until the next move."""

    @property
    def end_s(self) -> float:
        """When the slots had the role; of one that is under way, when it was decided."""
        return self.time_s + self.waited_s + (self.duration_s or 0.0)

    @property
    def predicted_change(self) -> float | None:
        """Of the rate, its own part: of a move that is the first of several, one in so many."""
        if not self.rate_now or self.rate_after is None:
            return None
        target = self.num_rollout if self.target_num_rollout is None else self.target_num_rollout
        return (self.rate_after / self.rate_now - 1.0) / max(abs(target - self.num_rollout), 1)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Some moves, one after the other."""

    moves: tuple[Move, ...]
    until_s: float
    """When the next series begins, or what was written ends."""

    @property
    def begin_s(self) -> float:
        """The first decision."""
        return self.moves[0].time_s

    @property
    def end_s(self) -> float:
        """The last slots had their role."""
        return self.moves[-1].end_s

    @property
    def num_steps_after(self) -> int:
        """Training steps that began after the last move, until the next series."""
        return self.moves[-1].num_steps_after

    @property
    def predicted_change(self) -> float | None:
        """Of the rate, by all moves together; None unless each was predicted."""
        change = 1.0
        for move in self.moves:
            if move.predicted_change is None:
                return None
            change *= 1.0 + move.predicted_change
        return change - 1.0


def read_moves(decisions: Sequence[Line], events: Sequence[Line], end_s: float) -> list[Move]:
    """All moves, in the order of time."""
    moving = [decision for decision in decisions if decision["action"] != "hold"]
    nexts_s = [*(decision["time_s"] for decision in moving[1:]), end_s]
    steps = [event for event in events if event["event"] == "step"]
    arrivals = [event for event in events if event["event"] in ("move", "slot")]
    return [_move(decision, arrivals, steps, next_s) for decision, next_s in zip(moving, nexts_s, strict=False)]


def series_of(moves: Sequence[Move], *, num_steps: int, end_s: float) -> list[Series]:
    """Moves in one direction are one series as long as each is followed by the next within ``num_steps`` steps."""
    together: list[list[Move]] = []
    for move in moves:
        last = together[-1][-1] if together else None
        if last is not None and last.action == move.action and last.num_steps_after < num_steps:
            together[-1].append(move)
        else:
            together.append([move])
    untils_s = [*(each[0].time_s for each in together[1:]), end_s]
    return [
        Series(moves=tuple(each), until_s=max(until_s, each[-1].end_s))
        for each, until_s in zip(together, untils_s, strict=False)
    ]


def _move(decision: Line, arrivals: Sequence[Line], steps: Sequence[Line], next_s: float) -> Move:
    begin_s, slot_id, owner = decision["time_s"], decision["slot_id"], _OWNERS[decision["action"]]
    own = [each for each in arrivals if begin_s <= each["time_s"] <= next_s]
    changes = [each for each in own if each["event"] == "slot" and each["gang_id"] == slot_id]
    arrived_s = next((each["time_s"] for each in changes if each["owner"] == owner), None)
    done = next((each for each in own if each["event"] == "move" and each["slot_id"] == slot_id), None)
    end_s = begin_s if arrived_s is None else arrived_s
    lefts_s = [each["time_s"] for each in changes if each["owner"] == "moving"]
    left_s = lefts_s[0] if lefts_s and lefts_s[0] <= end_s else begin_s
    return Move(
        time_s=begin_s,
        step=decision["step"],
        action=decision["action"],
        slot_id=slot_id,
        reason=decision["reason"],
        num_train=decision["num_train"],
        num_rollout=decision["num_rollout"],
        waited_s=0.0 if arrived_s is None else left_s - begin_s,
        duration_s=None if arrived_s is None else arrived_s - left_s,
        has_left=bool(lefts_s) or arrived_s is not None,
        trainer_pause_s=None if done is None else done["trainer_pause_s"],
        rate_now=decision["rate_now"],
        rate_after=decision["rate_after"],
        gain=decision["gain"],
        cost=decision["cost"],
        horizon_s=decision["horizon_s"],
        target_num_rollout=decision["target_num_rollout"],
        num_steps_after=sum(end_s <= step["begin_s"] and step["time_s"] <= next_s for step in steps),
    )
