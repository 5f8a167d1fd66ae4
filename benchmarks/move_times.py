"""Where the time of each move went, from a run's files alone. Pure functions of their lines.

::

    to rollout   decided ─► the step ends ─► has left the trainers ─► engine has its memory ─► has the weights
                                                                                           ─► has made a token
    to training  decided ─► generated on ─► requests are elsewhere ─► memory is free ─► trainer is built
                                          ─► has met the trainers ─► the step ends ─► has joined ─► a step begins
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Line = Mapping[str, Any]
_Ends = Mapping[str, float | None]
"""When each part ended, in order; None of one that did not."""

PARTS = {
    "to_rollout": ("step's end", "leaving the trainers", "engine's memory", "weights", "first token"),
    "to_train": (
        "generating on",
        "moving requests",
        "freeing memory",
        "building the trainer",
        "meeting the trainers",
        "step's end",
        "joining",
        "batch",
    ),
}
"""Of a move in each direction, in order: each begins where the one before it ends."""
WAITS = ("generating on", "step's end", "batch")
"""Those in which the trainers are at their step, or wait for a batch: the move can but wait for that."""


@dataclass(frozen=True, kw_only=True)
class MoveTimes:
    """A move that came to useful work: a first token, or the begin of a training step."""

    gang_id: str
    action: str
    decided_s: float
    parts_s: Mapping[str, float]
    first_step_s: float | None
    """Of a move to training: from the decision to the end of the first step that it took part in."""
    trainer_pause_s: float
    """Training stood still for it."""

    @property
    def total_s(self) -> float:
        """From the decision to useful work."""
        return sum(self.parts_s.values())

    @property
    def own_s(self) -> float:
        """The same without the waits."""
        return sum(duration_s for part, duration_s in self.parts_s.items() if part not in WAITS)

    @property
    def end_s(self) -> float:
        """When useful work began."""
        return self.decided_s + self.total_s


def read_moves(decisions: Iterable[Line], events: Iterable[Line]) -> list[MoveTimes]:
    """All moves of single slots that came to useful work, in order."""
    moving = [decision for decision in decisions if decision["action"] != "hold"]
    own: dict[str, list[Line]] = {decision["slot_id"]: [] for decision in moving}
    for event in events:
        for slot_id in event["slot_ids"] if event["event"] == "step" else [event.get("slot_id")]:
            if slot_id in own:
                own[slot_id].append(event)
    found = []
    for decision in moving:
        gang_id, decided_s = decision["slot_id"], decision["time_s"]
        later_s = [each["time_s"] for each in moving if each["slot_id"] == gang_id and each["time_s"] > decided_s]
        until_s = min(later_s, default=float("inf"))
        move = _move(decision, [event for event in own[gang_id] if decided_s <= event["time_s"]], until_s)
        if move is not None:
            found.append(move)
    return found


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """How much longer than usual the longest gaps between engine steps were. Usual is the median of the longest gaps in
    stretches before the first move."""

    in_moves_s: list[float]
    """Of each move: of any other replica, in a stretch that overlaps with it."""
    between_moves_s: list[float]
    """Of each stretch of a replica that overlaps with no move, from the first one on."""


def gaps_beyond_usual(moves: Sequence[MoveTimes], events: Iterable[Line]) -> Gaps | None:
    """The gaps in a run; None where it has no stretch before its first move."""
    stretches = [event for event in events if event["event"] == "replica" and event["num_tokens"]]
    first_s = min((move.decided_s for move in moves), default=0.0)
    usual = [stretch["longest_gap_s"] for stretch in stretches if stretch["time_s"] <= first_s]
    if not usual:
        return None

    def beyond(longest_s: float) -> float:
        return max(0.0, longest_s - median(usual))

    def overlap(stretch: Line, move: MoveTimes) -> bool:
        return stretch["begin_s"] < move.end_s and stretch["time_s"] > move.decided_s

    in_moves = [
        max(
            (
                stretch["longest_gap_s"]
                for stretch in stretches
                if stretch["slot_id"] != move.gang_id and overlap(stretch, move)
            ),
            default=0.0,
        )
        for move in moves
    ]
    between = [
        stretch["longest_gap_s"]
        for stretch in stretches
        if stretch["begin_s"] >= first_s and not any(overlap(stretch, move) for move in moves)
    ]
    return Gaps(in_moves_s=list(map(beyond, in_moves)), between_moves_s=list(map(beyond, between)))


def num_tokens_made_twice(metrics: Iterable[Line], samples: Iterable[Line], answers: Iterable[Line]) -> int:
    """Tokens that engines generated and that stand in no answer, as those of a request that had to begin again: of a
    run that did all its steps, dropped no group, and kept the answers to all its held-out prompts."""
    num_samples = {line["step"]: sum(map(len, line["rewards"])) for line in samples}
    steps = [line for line in metrics if "response_length/mean" in line]
    trained: int = sum(round(line["response_length/mean"] * num_samples[line["step"]]) for line in steps)
    held_out = [line for line in answers if line["kind"] == "held_out" and line["step"] == 0]
    num_generated: int = round(steps[-1]["vllm:generation_tokens"]) if steps else 0
    return num_generated - trained - sum(int(line["num_response_tokens"]) for line in held_out)


def _move(decision: Line, own: Sequence[Line], until_s: float) -> MoveTimes | None:
    """``own`` are the events of its gang since the decision; the next one about it was at ``until_s``."""
    changes = [event for event in own if event["time_s"] < until_s]
    done = next((event for event in changes if event["event"] == "move"), None)
    first_step = _first_step(own, changes) if decision["action"] == "to_train" else None
    ends = _to_rollout(changes) if decision["action"] == "to_rollout" else _to_train(changes, first_step)
    parts_s, begin_s = {}, decision["time_s"]
    for part, end_s in zip(PARTS[decision["action"]], ends, strict=True):
        if end_s is None or done is None:
            return None
        parts_s[part], begin_s = end_s - begin_s, end_s
    assert done is not None
    return MoveTimes(
        gang_id=decision["slot_id"],
        action=decision["action"],
        decided_s=decision["time_s"],
        parts_s=parts_s,
        first_step_s=None if first_step is None else first_step["work_end_s"] - decision["time_s"],
        trainer_pause_s=done["trainer_pause_s"],
    )


def _to_rollout(changes: Sequence[Line]) -> list[float | None]:
    boundary_s, left_s = _phase_s(changes, "step_boundary"), _state_s(changes, "idle")
    return [
        boundary_s,
        left_s,
        *(_phase_s(changes, name) for name in ("engine_formed", "weights_taken", "first_token")),
    ]


def _to_train(changes: Sequence[Line], first_step: Line | None) -> list[float | None]:
    names = ("requests_moved", "memory_released", "trainer_built", "group_met", "step_boundary")
    joined_s, begins_s = _state_s(changes, "train"), None if first_step is None else first_step["work_begin_s"]
    if joined_s is not None and begins_s is not None:
        joined_s = min(joined_s, begins_s)  # the step may begin before the gang's state is written down
    ends_s = [_phase_s(changes, name) for name in names]
    return [_state_s(changes, "leaving_rollout"), *ends_s, joined_s, begins_s]


def _first_step(own: Sequence[Line], changes: Sequence[Line]) -> Line | None:
    """None where the gang left the trainers before it took part in one."""
    boundary_s, left_s = _phase_s(changes, "step_boundary"), _state_s(own, "leaving_train")
    if boundary_s is None:
        return None
    until_s = float("inf") if left_s is None else left_s
    steps = [event for event in own if event["event"] == "step"]
    return next((step for step in steps if boundary_s <= step["work_begin_s"] < until_s), None)


def _phase_s(changes: Iterable[Line], phase: str) -> float | None:
    return next((each["time_s"] for each in changes if each["event"] == "phase" and each["phase"] == phase), None)


def _state_s(changes: Iterable[Line], state: str) -> float | None:
    return next((each["time_s"] for each in changes if each["event"] == "slot" and each["state"] == state), None)
