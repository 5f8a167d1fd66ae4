"""The measurement: readings in, figures out. Pure bookkeeping on the caller's clock; memory is bounded.

    StepDone       ──► training rate by the types of gangs that made the step; progress since the last move; waits
    ReplicaPolled  ──► rate of each replica, and how a decoding step grows with its batch, by type
    GroupDone      ──► share of groups kept, tokens a group: windows that end at the last change
    MoveDone       ──► what a move costs, by direction                RolloutLeft ──► how long leaving rollout takes
    SyncDone       ──► how long weights take       HostPolled ──► how busy shared processors are

A replica is measured while it computes, together with the batch it computed on: one that gets too little work is not
slow.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from rlserve.manager.measurement.alternation import Alternations
from rlserve.manager.measurement.figures import (
    Measurements,
    MoveCost,
    Progress,
    TrainRate,
)
from rlserve.manager.measurement.readings import (
    GroupDone,
    HostPolled,
    MoveDone,
    Reading,
    ReplicaPolled,
    RolloutLeft,
    StepDone,
    SyncDone,
)
from rlserve.manager.measurement.replicas import ReplicaMeter
from rlserve.manager.measurement.windows import AmountWindow, ShareWindow
from rlserve.manager.roles import Role

_NUM_STEPS = 8
"""Steps that a rate rests on."""
_SPREAD = 0.05
"""Of the sizes of batches around their mean, relative: with so much, what was measured and proportion count alike."""
_NUM_SIZES = 64
"""Sets of types that are remembered."""
_NUM_KEPT = 192
_NUM_GROUPS = 1024
_NUM_MOVES = 5
_NUM_SYNCS = 16
_HOST_S = 30.0
"""A node that has not been polled for so long is forgotten."""


@dataclass
class _Size:
    """Steps made by gangs of the same types."""

    steps: deque[StepDone] = field(default_factory=lambda: deque(maxlen=_NUM_STEPS))
    num_steps: int = 0

    def note(self, step: StepDone) -> None:
        """Take a step in. The first counts only until there is another: it warms up."""
        if self.num_steps == 1:
            self.steps.clear()
        self.steps.append(step)
        self.num_steps += 1

    def rate(self, types: tuple[str, ...]) -> TrainRate:
        """Of its last steps."""
        work_s = sum(step.work_s for step in self.steps)
        mean_s = work_s / len(self.steps)
        mean_tokens = sum(step.num_tokens for step in self.steps) / len(self.steps)
        token_s = self._token_s(mean_s, mean_tokens)
        return TrainRate(
            types=types,
            step_s=mean_s,
            tokens_per_s=mean_tokens / mean_s,
            token_s=token_s,
            early_s=max(mean_s + token_s * (step.num_tokens - mean_tokens) - step.work_s for step in self.steps),
            num_steps=self.num_steps,
            last_s=self.steps[-1].end_s,
        )

    def _token_s(self, mean_s: float, mean_tokens: float) -> float:
        """Slope of a line through the steps. With batches of one size it is not known: then steps are in proportion to
        their tokens (ridge regression)."""
        proportional = mean_s / mean_tokens if mean_tokens else 0.0
        variance = sum((step.num_tokens - mean_tokens) ** 2 for step in self.steps) / len(self.steps)
        covariance = sum((step.num_tokens - mean_tokens) * step.work_s for step in self.steps) / len(self.steps)
        ridge = max((_SPREAD * mean_tokens) ** 2, 1.0)
        return min(max((covariance + ridge * proportional) / (variance + ridge), 0.0), proportional)


class Meter:
    """Takes readings as they come and sums them up when asked."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[tuple[str, ...], _Size] = OrderedDict()
        """Those used last at the end."""
        self._recent: deque[StepDone] = deque(maxlen=_NUM_STEPS)
        self._since_move: deque[StepDone] = deque(maxlen=_NUM_STEPS)
        self._num_since_move = 0
        self._move_end_s = float("-inf")
        self._replicas = ReplicaMeter()
        self._kept = ShareWindow(_NUM_KEPT)
        self._alternations = Alternations()
        self._group_tokens = AmountWindow(_NUM_GROUPS)
        self._moves: dict[Role, deque[MoveDone]] = {role: deque(maxlen=_NUM_MOVES) for role in Role}
        self._leaves: deque[RolloutLeft] = deque(maxlen=_NUM_MOVES)
        self._syncs: deque[SyncDone] = deque(maxlen=_NUM_SYNCS)
        self._hosts: dict[str, HostPolled] = {}

    def note(self, reading: Reading) -> None:
        """Take a reading in; readings of one kind come in the order of their time."""
        match reading:
            case StepDone():
                self._note_step(reading)
            case ReplicaPolled():
                self._replicas.note(reading)
            case GroupDone():
                changed = self._kept.add(float(reading.kept))
                self._alternations.note(reading.time_s, float(reading.kept), changed=changed)
                self._group_tokens.add(float(reading.num_tokens))
            case MoveDone():
                self._note_move(reading)
            case RolloutLeft():
                self._leaves.append(reading)
            case SyncDone():
                self._syncs.append(reading)
            case HostPolled():
                self._hosts[reading.node] = reading
            case _:
                raise TypeError(f"nothing is measured by a {type(reading).__name__}")

    def figures(self, now_s: float) -> Measurements:
        """Everything that was measured, as of ``now_s``."""
        self._hosts = {node: polled for node, polled in self._hosts.items() if now_s - polled.time_s <= _HOST_S}
        syncs = self._syncs
        return Measurements(
            train=tuple(size.rate(types) for types, size in self._sizes.items()),
            replicas=self._replicas.rates(now_s),
            curves=self._replicas.curves(),
            progress=self._progress(),
            last_step_end_s=self._recent[-1].end_s if self._recent else None,
            tokens_per_group=self._group_tokens.mean,
            trained_tokens_per_group=_ratio(
                sum(step.num_tokens for step in self._recent), sum(step.num_groups for step in self._recent)
            ),
            kept_share=self._kept.mean,
            kept_alternation=self._alternations.figure(),
            num_kept_observed=len(self._kept),
            wait_share=_ratio(sum(step.wait_s for step in self._recent), sum(_whole_s(step) for step in self._recent)),
            weights_s=_ratio(sum(step.weights_s for step in self._recent), len(self._recent)),
            move_costs={role: _mean_cost(moves) for role, moves in self._moves.items() if moves},
            leave_s=max((left.duration_s for left in self._leaves), default=None),
            sync_s=_ratio(sum(sync.duration_s for sync in syncs), len(syncs)),
            sync_pause_s=_ratio(sum(sync.pause_s for sync in syncs), len(syncs)),
            host_busy_share=max((polled.busy_share for polled in self._hosts.values()), default=None),
        )

    def _note_step(self, step: StepDone) -> None:
        if step.work_s <= 0.0 or step.num_groups <= 0:
            return
        types = tuple(sorted(step.types))
        self._sizes.setdefault(types, _Size()).note(step)
        self._sizes.move_to_end(types)
        if len(self._sizes) > _NUM_SIZES:
            self._sizes.popitem(last=False)
        self._recent.append(step)
        if step.end_s - _whole_s(step) >= self._move_end_s:
            self._since_move.append(step)
            self._num_since_move += 1

    def _note_move(self, move: MoveDone) -> None:
        self._moves[move.to].append(move)
        self._move_end_s = move.end_s
        self._since_move.clear()
        self._num_since_move = 0
        if move.to is Role.TRAIN:
            self._replicas.forget(move.gang_id)

    def _progress(self) -> Progress | None:
        steps, whole_s = self._since_move, sum(_whole_s(step) for step in self._since_move)
        if not steps or whole_s <= 0.0:
            return None
        return Progress(
            num_steps=self._num_since_move,
            groups_per_s=sum(step.num_groups for step in steps) / whole_s,
            wait_share=sum(step.wait_s for step in steps) / whole_s,
        )


def _whole_s(step: StepDone) -> float:
    return step.wait_s + step.weights_s + step.work_s


def _ratio(total: float, count: float) -> float | None:
    return total / count if count > 0 else None


def _mean_cost(moves: deque[MoveDone]) -> MoveCost:
    return MoveCost(
        duration_s=sum(move.end_s - move.begin_s for move in moves) / len(moves),
        trainer_pause_s=sum(move.trainer_pause_s for move in moves) / len(moves),
        num_moves=len(moves),
    )
