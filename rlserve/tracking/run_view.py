"""What ``rlserve top`` and ``rlserve dashboard`` show of a run: read from its folder alone, at its ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlserve.tracking import names
from rlserve.tracking.hindsight.judgement import Judged, Judgement, judge
from rlserve.tracking.jsonl import Line, read_last_json_lines
from rlserve.tracking.live import LiveState, read_live
from rlserve.tracking.paced import is_paced
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import RunState, read_run_state

MAX_NUM_MOVES = 6
MAX_NUM_POINTS = 400
NUM_STEPS_OF_SHARE = 10
SPLIT_LINES = tuple(f'{{"event": "{kind}"' for kind in ("run", "slot", "move"))
"""How the lines begin that tell the split: the last of them may be hours old."""
_ROLES = {"to_rollout": " to rollout", "to_train": " to train"}


@dataclass(frozen=True, kw_only=True)
class MoveView:
    """A move, or a series of them in one direction, with what it was to bring and what it brought; None is what is not
    known, or not yet."""

    time_s: float
    text: str
    """``H100/3 to rollout``; of several one after the other, all of them."""
    reason: str
    predicted: float | None
    """Change of the rate at which groups are trained: 0.05 is 5 % more."""
    realised: float | None
    """Against what the split before would have made under the load of afterwards."""
    realised_error: float | None
    """Its standard error."""
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
    is_paced: bool
    """Times are those of the accelerators that it models."""

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
    events, config = read_last_json_lines(folder.events_file, also=SPLIT_LINES), folder.read_config()
    moved = move_views(judge(decisions=decisions, events=events, metrics=metrics, config=config))
    return RunView(
        state=state,
        live=read_live(folder.live_file) if state.state == "running" else None,
        decision=_decision_view(decisions[-1]) if decisions else None,
        moves=tuple(reversed(moved[-MAX_NUM_MOVES:])),
        points=tuple(_point(record) for record in metrics if record.get(names.STEP_S) is not None)[-MAX_NUM_POINTS:],
        wait_share=_wait_share(metrics),
        is_paced=is_paced(config),
    )


def move_views(judgement: Judgement) -> list[MoveView]:
    """Each series of moves with what became of it."""
    return [_move_view(judged) for judged in judgement.series]


def _move_view(judged: Judged) -> MoveView:
    series, after = judged.series, judged.after
    durations_s = [move.duration_s for move in series.moves if move.duration_s is not None]
    slots = ", ".join(move.slot_id for move in series.moves)
    return MoveView(
        time_s=series.begin_s,
        text=f"{slots}{_ROLES[series.moves[0].action]}",
        reason=series.moves[0].reason,
        predicted=series.predicted_change,
        realised=None if after is None else after.change,
        realised_error=None if after is None else after.error,
        duration_s=sum(durations_s) if durations_s else None,
    )


def _decision_view(decision: Line) -> MoveView:
    """Of a decision whose time has not come yet."""
    role = _ROLES.get(decision["action"])
    return MoveView(
        time_s=decision["time_s"],
        text="hold" if role is None else f"{decision['slot_id']}{role}",
        reason=decision["reason"],
        predicted=_change(decision["rate_now"], decision["rate_after"]),
        realised=None,
        realised_error=None,
        duration_s=None,
    )


def _change(before: float | None, after: float | None) -> float | None:
    return None if not before or after is None else after / before - 1


def _point(record: Line) -> Point:
    return Point(
        time_s=record[names.TIME],
        step=record["step"],
        queue_length=record.get(names.QUEUE_LENGTH),
        num_buffered=record.get(names.NUM_BUFFERED),
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
