"""What happens in a run besides its metrics: decisions of the manager, slots changing hands, failures, weights.

Plain records, one JSON line each: decisions in ``decisions.jsonl``, everything else in ``events.jsonl`` with the kind
under ``event``. ``time_s`` is the time that the run has been going, in seconds; a resumed run goes on from
:func:`recorded_time_s`, so the time between is left out and time never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

from rlserve.tracking.jsonl import JsonLinesWriter, drop_steps, read_json_lines
from rlserve.tracking.run_folder import RunFolder

Action = Literal["hold", "to_rollout", "to_train"]
Owner = Literal["train", "rollout", "moving", "dead", "gone"]
Stage = Literal["starting", "evaluating", "training", "saving", "ending"]
RolePhase = Literal[
    "requests_moved",
    "memory_released",
    "trainer_built",
    "group_met",
    "step_boundary",
    "engine_formed",
    "weights_taken",
    "first_token",
]
"""A part of a change of role that is done. To training: the requests are on their way to other replicas with their
tokens; the memory of the engine is free; model and optimizer are built; the next group of trainers is connected; they
have ended their step, and join it. To rollout: the trainers have ended their step; the engine has its memory; the
newest weights are loaded; the first token is made."""


class Record:
    """Base of all that is written down of a run besides its metrics: one JSON line of its fields."""


@dataclass(frozen=True, kw_only=True)
class Event(Record):
    """Base of what ``events.jsonl`` is made of."""

    kind: ClassVar[str]
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Decision(Record):
    """One decision of the manager, also one to leave everything as it is."""

    time_s: float
    step: int
    """Training steps done."""
    action: Action
    slot_id: str | None
    """The slot to move, or the slots that move together (``H100/0-1``); None where none moves."""
    queue_length: int | None
    """Prompt groups that wait for a replica; None where it could not be read."""
    num_train: int
    num_rollout: int
    reason: str
    rate_now: float | None = None
    """Prompt groups trained in a second, as the policy predicts it without a move; None, as the next ones, where it
    predicts nothing."""
    rate_after: float | None = None
    """The same after the move; of a hold, after the best move that was left."""
    gain: float | None = None
    """Prompt groups more over the horizon that the move is to bring."""
    cost: float | None = None
    """Prompt groups that are not made because of it."""
    horizon_s: float | None = None
    target_num_rollout: int | None = None
    """Gangs in rollout that the policy makes for, one move at a time."""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    """Whatever else the policy looked at."""


@dataclass(frozen=True, kw_only=True)
class RunEvent(Event):
    """The run began, or went on after a stop."""

    kind: ClassVar[str] = "run"
    begin_s: float
    """When the command began."""
    resumed: bool
    step: int
    """Training steps done."""
    begun_at_s: float | None = None
    """When the command began by the clock on the wall, in Unix seconds; None where the run's times are of
    no clock on a wall: in simulation, and where slots are paced."""


@dataclass(frozen=True, kw_only=True)
class StageEvent(Event):
    """From now on the whole run is about this. ``evaluating`` and ``saving`` are what training stands still for."""

    kind: ClassVar[str] = "stage"
    stage: Stage


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event):
    """The process that ran the run ended on its own terms; a run without it was killed, or goes on."""

    kind: ClassVar[str] = "end"
    time_s: float
    """Of the record before it."""
    exit_code: int
    error: str | None
    """What it failed with."""


@dataclass(frozen=True, kw_only=True)
class SlotEvent(Event):
    """From now on a slot belongs to ``owner``; ``moving`` is on the way between two owners, or still starting,
    and ``gone`` has left with its node."""

    kind: ClassVar[str] = "slot"
    slot_id: str
    slot_type: str
    gang_id: str
    """The slots that move together; with one, its own id."""
    owner: Owner
    state: str
    """The same in detail: ``leaving_train``, ``idle``, ``joining_rollout`` …"""


@dataclass(frozen=True, kw_only=True)
class WorkerEvent(Event):
    """The worker process of a slot has come up."""

    kind: ClassVar[str] = "worker"
    slot_id: str
    process_id: int
    host: str


@dataclass(frozen=True, kw_only=True)
class WorkerStateEvent(Event):
    """From now on the worker of a slot is ``restarting``, ``stale``, ``healthy``, ``suspect``, ``dead`` or ``retired``
    (``rlserve.pool.worker_table``)."""

    kind: ClassVar[str] = "worker_state"
    slot_id: str
    state: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FailureEvent(Event):
    """A worker was lost."""

    kind: ClassVar[str] = "failure"
    slot_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LostWorkEvent(Event):
    """A replica was lost, and what it had begun begins again on others."""

    kind: ClassVar[str] = "lost_work"
    slot_id: str
    """That led it."""
    num_requests: int
    num_tokens: int
    """Generated for them, as far as it was heard."""


@dataclass(frozen=True, kw_only=True)
class WeightEvent(Event):
    """A version of the weights was published by the trainer, or taken by the replica on ``slot_id``."""

    kind: ClassVar[str] = "weights"
    version: int
    slot_id: str | None
    """None: published."""
    duration_s: float
    pause_s: float
    """The part of it in which the trainer, or the engine, stood still."""


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """A checkpoint is wholly on disk."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    pause_s: float
    """Training stood still: for the copy, and for the checkpoint before."""
    duration_s: float
    """Written beside the training, after the copy."""


@dataclass(frozen=True, kw_only=True)
class CanaryEvent(Event):
    """The replica on ``slot_id`` computes other log-probabilities than the trainer."""

    kind: ClassVar[str] = "canary"
    slot_id: str
    version: int
    """Of the weights, which both have."""
    difference: float
    """Of the prompt that differs most, in nats a token."""
    tolerance: float
    is_replaced: bool
    """It has taken the weights anew, in vain; else it does so now."""


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """A training step was done, at ``time_s``: ``begin_s`` waiting, ``work_begin_s`` computing, ``work_end_s`` copying
    the weights."""

    kind: ClassVar[str] = "step"
    step: int
    begin_s: float
    work_begin_s: float
    work_end_s: float
    slot_ids: tuple[str, ...]
    """Of the trainers."""
    num_groups: int
    num_tokens: int
    """Prompts included."""
    weights_wait_s: float = 0.0
    """Of the wait, while a version of the weights was on its way to the replicas."""
    change_wait_s: float = 0.0
    """Of the wait, while the batch was there and the group of trainers was being changed."""
    broken_s: float = 0.0
    """Of the computing, tries that were broken off because a trainer was lost."""
    state_copy_s: float = 0.0
    """Of the copying, the state for a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TokensEvent(Event):
    """What became of tokens that replicas had made, since it was told last."""

    kind: ClassVar[str] = "tokens"
    step: int
    """The training step that trained on those of ``num_trained``; of the others, the last one done."""
    num_trained: int = 0
    num_dropped: int = 0
    """Of prompt groups that were answered and dropped."""
    num_held_out: int = 0
    """Of answers to held-out prompts."""
    num_clients: int = 0
    """Of clients of the run's server, who have read them already."""


@dataclass(frozen=True, kw_only=True)
class BudgetEvent(Event):
    """The run has cost more than it may (``cost.budget``)."""

    kind: ClassVar[str] = "budget"
    unit: Literal["gpu_hours", "money"]
    spent: float
    budget: float
    stops: bool
    """The run saves and ends."""


@dataclass(frozen=True, kw_only=True)
class ReplicaEvent(Event):
    """What a replica did from ``begin_s`` to ``time_s``, one stretch after the other for as long as it serves."""

    kind: ClassVar[str] = "replica"
    slot_id: str
    """That leads it."""
    begin_s: float
    busy_s: float
    """Of the stretch, computing."""
    recompute_s: float = 0.0
    """Of that, for keys and values that had been there before, here or in another replica."""
    longest_gap_s: float
    """Longest time between the ends of two of its engine's steps, without the time in which there was no work."""
    running_s: float
    """Samples in its running batch, summed over that time."""
    num_tokens: int
    """Generated."""


@dataclass(frozen=True, kw_only=True)
class TurnEvent(Event):
    """All gangs have the other role since ``time_s``: with ``pool.placement=colocated`` they have both in turn."""

    kind: ClassVar[str] = "turn"
    to: Literal["train", "rollout"]
    begin_s: float
    """When the turn before was over."""
    released_bytes: int
    """Memory that the role of before gave back, on all slots together."""
    kept_bytes: int
    """What their processes held then."""


@dataclass(frozen=True, kw_only=True)
class MoveEvent(Event):
    """Slots do useful work, at ``time_s``, in the role that they were moved to."""

    kind: ClassVar[str] = "move"
    slot_id: str
    """As in the decision."""
    action: Action
    begin_s: float
    """When they left their old role."""
    trainer_pause_s: float
    """How long training stood still for it."""


@dataclass(frozen=True, kw_only=True)
class ScaleOutEvent(Event):
    """From now on the cluster is asked for other numbers of slots of the types that the run grows by."""

    kind: ClassVar[str] = "scale_out"
    asked: Mapping[str, int]
    """Slots by type, those that the run has included."""
    present: Mapping[str, int]
    """Slots by type that it has."""
    late: Mapping[str, int]
    """Slots by type that did not come in time, and are asked for no more."""
    money_per_hour: float | None
    """Most that all slots of the run may cost now, those included that are still to come or to end; None where one has
    no price."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class RolePhaseEvent(Event):
    """A part of a change of role was done, at ``time_s``. The first token is told by the replica a little later, so
    other lines may stand before it that are younger."""

    kind: ClassVar[str] = "phase"
    slot_id: str
    """That leads its gang."""
    phase: RolePhase


@dataclass(frozen=True, kw_only=True)
class TrainedBatch(Record):
    """The prompt groups that a training step was done on, in order; one entry for each in every field but ``step``."""

    step: int
    group_ids: tuple[str, ...]
    attempts: tuple[int, ...]
    """How often each had to start over."""
    oldest_versions: tuple[int, ...]
    """Version of the weights that made the oldest token."""
    rewards: tuple[tuple[float, ...], ...]
    """Of each group's samples."""


class EventLog:
    """Writes ``decisions.jsonl``, ``events.jsonl`` and ``samples.jsonl``, each line as soon as it comes.

    ``resumed_step`` is the first step that a resumed run does again: of ``samples.jsonl``, the lines from that step
    on are dropped, so that every step stands there once.
    """

    def __init__(self, folder: RunFolder, resumed_step: int | None = None) -> None:
        if resumed_step is not None:
            drop_steps(folder.samples_file, resumed_step)
        self._decisions = JsonLinesWriter(folder.decisions_file)
        self._events = JsonLinesWriter(folder.events_file)
        self._samples = JsonLinesWriter(folder.samples_file)
        self._last_s = 0.0

    def write(self, record: Record) -> None:
        """Append a line to the file that the record belongs in."""
        match record:
            case Decision():
                self._last_s = record.time_s
                self._decisions.write(asdict(record))
            case Event():
                self._last_s = record.time_s
                self._events.write({"event": record.kind, **asdict(record)})
            case TrainedBatch():
                self._samples.write(asdict(record))
            case _:
                raise TypeError(f"no file is kept for {type(record).__name__}")

    def close(self, exit_code: int, error: str | None) -> None:
        """Note that the run ended, with its exit code and what it failed with."""
        self.write(EndEvent(time_s=self._last_s, exit_code=exit_code, error=error))
        self._decisions.close()
        self._events.close()
        self._samples.close()


def recorded_time_s(folder: RunFolder) -> float:
    """How long the run had been going when it last wrote something; 0 for a new one."""
    records = read_json_lines(folder.decisions_file) + read_json_lines(folder.events_file)
    return max((float(record["time_s"]) for record in records), default=0.0)
