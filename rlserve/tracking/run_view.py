"""What ``rlserve top`` and ``rlserve dashboard`` show of a run: read from its folder alone, at its ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlserve.tracking import names
from rlserve.tracking.jsonl import Line, read_last_json_lines
from rlserve.tracking.live import LiveState, read_live
from rlserve.tracking.move_outcomes import find_outcome
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import RunState, read_run_state

MAX_NUM_MOVES = 6
MAX_NUM_POINTS = 400
NUM_STEPS_OF_SHARE = 10


@dataclass(frozen=True, kw_only=True)
class MoveView:
    """A move, with what it was to bring and what it brought; None is what is not known, or not yet."""

    time_s: float
    text: str
    """``H100/3 to rollout``."""
    reason: str
    predicted: float | None
    """Change of the rate at which groups are trained: 0.05 is 5 % more."""
    realised: float | None
    duration_s: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """As of the end of a training step."""

    time_s: float
    step: int
    queue_length: float | None
    num_buffered: float | None
    generated_tokens_per_s: float | None
    trained_tokens_per_s: float | None
    num_train: float | None
    num_rollout: float | None
    reward: float | None


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run, as one looks on."""

    state: RunState
    live: LiveState | None
    """None of a run that does not go on."""
    decision: MoveView | None
    """The newest, also one that moves nothing."""
    moves: tuple[MoveView, ...]
    """The newest first."""
    points: tuple[Point, ...]
    wait_share: float | None
    """Of the last steps' time that the trainer waited for a batch."""

    @property
    def generated_tokens_per_s(self) -> float | None:
        """Now, or as of the last step."""
        if self.live is not None and self.live.tokens_per_s is not None:
            return self.live.tokens_per_s
        return self.points[-1].generated_tokens_per_s if self.points else None

    @property
    def trained_tokens_per_s(self) -> float | None:
        """As of the last step."""
        return self.points[-1].trained_tokens_per_s if self.points else None


def read_run_view(folder: RunFolder) -> RunView:
    """Look at a run's folder; changes nothing.

    Raises:
        DataError: a file of the run is damaged.
    """
    state = read_run_state(folder)
    metrics, decisions = read_last_json_lines(folder.metrics_file), read_last_json_lines(folder.decisions_file)
    outcomes = [event for event in read_last_json_lines(folder.events_file) if event["event"] == "outcome"]
    moved = move_views([decision for decision in decisions if decision["action"] != "hold"], outcomes)
    return RunView(
        state=state,
        live=read_live(folder.live_file) if state.state == "running" else None,
        decision=_move_view(decisions[-1], None) if decisions else None,
        moves=tuple(reversed(moved[-MAX_NUM_MOVES:])),
        points=tuple(_point(record) for record in metrics if record.get(names.STEP_S) is not None)[-MAX_NUM_POINTS:],
        wait_share=_wait_share(metrics),
    )


def move_views(moves: Sequence[Line], outcomes: Iterable[Line]) -> list[MoveView]:
    """Each decision to move with what became of it: the first outcome of its slot that begins before the slot's next
    move."""
    outcomes = list(outcomes)
    return [_move_view(move, find_outcome(move, moves[index + 1 :], outcomes)) for index, move in enumerate(moves)]


def _move_view(decision: Line, outcome: Line | None) -> MoveView:
    action = {"to_rollout": " to rollout", "to_train": " to train"}.get(decision["action"])
    return MoveView(
        time_s=decision["time_s"],
        text="hold" if action is None else f"{decision['slot_id']}{action}",
        reason=decision["reason"],
        predicted=_change(decision["rate_now"], decision["rate_after"]),
        realised=None if outcome is None else _change(outcome["rate_before"], outcome["rate_after"]),
        duration_s=None if outcome is None else outcome["duration_s"],
    )


def _change(before: float | None, after: float | None) -> float | None:
    return None if not before or after is None else after / before - 1


def _point(record: Line) -> Point:
    return Point(
        time_s=record[names.TIME],
        step=record["step"],
        queue_length=record.get(names.QUEUE_LENGTH),
        num_buffered=record.get("rollout/num_buffered"),
        generated_tokens_per_s=record.get(names.ROLLOUT_TOKENS_PER_S),
        trained_tokens_per_s=record.get(names.TRAINED_TOKENS_PER_S),
        num_train=record.get("pool/num_train"),
        num_rollout=record.get("pool/num_rollout"),
        reward=record.get(names.REWARD),
    )


def _wait_share(metrics: Sequence[Line]) -> float | None:
    steps = [record for record in metrics if record.get(names.STEP_S) and record.get(names.WAIT_S) is not None]
    steps = steps[-NUM_STEPS_OF_SHARE:]
    whole_s = sum(record[names.STEP_S] for record in steps)
    return sum(record[names.WAIT_S] for record in steps) / whole_s if whole_s else None
