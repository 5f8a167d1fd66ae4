"""What happens in a run, as typed events on one bus: who notices says so, and whoever it concerns has subscribed.

::

    event               said by                   heard by
    ──────────────────  ────────────────────────  ────────────────────────────────────────────────────────────
    WorkerLost          trainer group, replicas   recovery: ends it, starts another
    RequestsStarted     replicas                  rollout loop: ledger pending → running
    RequestsReturned    replicas                  rollout loop: ledger running → pending
    RequestAnswered     replicas                  rollout loop: to be scored; desks: to whoever asked
    TokensStreamed      replicas                  client desk: to whoever reads; cost keeper
    WorkerDied          heartbeat                 recovery: whoever worked with it gives it up
    WorkerNotified      heartbeat                 departures: its gang is emptied
    GangsRunOut         departures                controller: stops and saves
    WeightsTaken        weight sync               replicas: the router learns the version; measuring
    WeightsNotTaken     weight sync               replicas: it is lost
    ReplicaHeard        replicas                  measuring; replica log
    GroupFinished       rollout loop              measuring, cost keeper
    StepEnded           training loop             measuring, host watch
    GroupsTrained       training loop             answer log, cost keeper
    HeldOutAnswered     evaluation                answer log, cost keeper
    tracking.Record     whoever did it            tracker: the run's files; cost keeper; the display, of a Decision

Events are facts: the one who emits them has changed its own state already, and needs no answer. A handler runs at once,
to its end, before ``emit`` returns, so what it does is done when the emitter goes on; what a handler raises stops the
run. Nobody subscribes after the parts are put together (``rlserve.controller.build``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlserve.controller.ports import WorkerHandle
from rlserve.engine.requests.delta import SampleDelta
from rlserve.engine.requests.request import RequestOutput
from rlserve.errors import WorkerLostError
from rlserve.manager.roles import Role
from rlserve.pool.base import RolloutStats
from rlserve.pool.notices.base import Notice
from rlserve.rollout.groups import ScoredAnswer, ScoredGroup
from rlserve.rollout.requests.base import RequestId
from rlserve.tracking.events import Record


class ControllerEvent:
    """Base of the events that concern the controller's own parts."""


@dataclass(frozen=True, kw_only=True)
class WorkerLost(ControllerEvent):
    """A worker died or is taken for dead; whoever worked with it has given it up already."""

    slot_id: str
    role: Role
    """What it did, or was about to do."""
    error: BaseException


@dataclass(frozen=True, kw_only=True)
class WorkerDied(ControllerEvent):
    """The process of a worker is gone, or was ended because it stood still."""

    slot_id: str
    worker: WorkerHandle
    """That was on the slot."""
    error: WorkerLostError


@dataclass(frozen=True, kw_only=True)
class WorkerNotified(ControllerEvent):
    """A worker has been told that its slot will be taken away. Said again with every sign of life."""

    slot_id: str
    notice: Notice


@dataclass(frozen=True, kw_only=True)
class GangsRunOut(ControllerEvent):
    """So many gangs are going to leave that the run cannot go on."""

    num_staying: int


@dataclass(frozen=True, kw_only=True)
class RequestsStarted(ControllerEvent):
    """A replica was given requests."""

    ids: tuple[RequestId, ...]
    version: int
    """Of the weights that it serves."""


@dataclass(frozen=True, kw_only=True)
class RequestsReturned(ControllerEvent):
    """A replica left or was lost, and what it had waits again, as the next attempt of each."""

    ids: tuple[RequestId, ...]
    """Of the attempts that it had."""


@dataclass(frozen=True, kw_only=True)
class RequestAnswered(ControllerEvent):
    """A replica finished, or refused, a request that is still waited for; each is answered once."""

    id: RequestId
    output: RequestOutput


@dataclass(frozen=True, kw_only=True)
class TokensStreamed(ControllerEvent):
    """A replica made new tokens for a client, before its answer ends."""

    id: RequestId
    samples: tuple[SampleDelta, ...]

    @property
    def num_tokens(self) -> int:
        """Of all samples."""
        return sum(len(sample.tokens) for sample in self.samples)


@dataclass(frozen=True, kw_only=True)
class WeightsTaken(ControllerEvent):
    """A replica serves a newer version of the weights."""

    slot_id: str
    version: int
    duration_s: float
    """Since it was offered."""
    pause_s: float
    """The engine stood still."""


@dataclass(frozen=True, kw_only=True)
class WeightsNotTaken(ControllerEvent):
    """A replica failed, or did not take a version in time; it is offered nothing more."""

    slot_id: str
    error: BaseException


@dataclass(frozen=True, kw_only=True)
class ReplicaHeard(ControllerEvent):
    """A replica has told its numbers."""

    slot_id: str
    since_s: float
    """When it began to serve."""
    stats: RolloutStats
    num_generated_tokens: int
    """Since then."""


@dataclass(frozen=True, kw_only=True)
class GroupFinished(ControllerEvent):
    """A prompt group was answered, and kept for training or dropped."""

    kept: bool
    num_tokens: int
    """Of its answers."""


@dataclass(frozen=True, kw_only=True)
class StepEnded(ControllerEvent):
    """A training step was done. Where its time went; the rest was a change of the group, or the controller's own."""

    slot_ids: tuple[str, ...]
    """Of the trainers."""
    num_groups: int
    num_tokens: int
    """Prompts included."""
    wait_s: float
    """For the batch, while all replicas had the newest weights."""
    weights_s: float
    """For weights to be copied, or for the batch while weights were on their way."""
    work_s: float
    """Computing."""


@dataclass(frozen=True, kw_only=True)
class GroupsTrained(ControllerEvent):
    """A training step was done on ``groups``."""

    step: int
    groups: Sequence[ScoredGroup]


@dataclass(frozen=True, kw_only=True)
class HeldOutAnswered(ControllerEvent):
    """The policy answered held-out prompts after ``step`` steps."""

    step: int
    answers: Sequence[ScoredAnswer]
    num_tokens: int
    """That the replicas made for them."""


EventT = TypeVar("EventT", bound=ControllerEvent | Record)


class EventBus:
    """Hands each event to the subscribers of its type and of that type's bases, in order of subscription."""

    def __init__(self) -> None:
        self._handlers: dict[type, list[Callable[[Any], None]]] = {}

    def subscribe(self, kind: type[EventT], handler: Callable[[EventT], None]) -> None:
        """Call ``handler`` with every event of ``kind``."""
        self._handlers.setdefault(kind, []).append(handler)

    def emit(self, event: ControllerEvent | Record) -> None:
        """Something happened."""
        for kind in type(event).__mro__:
            for handler in self._handlers.get(kind, ()):
                handler(event)
