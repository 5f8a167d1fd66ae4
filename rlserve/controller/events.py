"""What happens in a run, as typed events on one bus: who notices says so, and whoever it concerns has subscribed.

::

    event               said by                   heard by
    ──────────────────  ────────────────────────  ────────────────────────────────────────────────────────────
    WorkerLost          trainer group, replicas   reallocation: ends it, starts another
    GroupsStarted       replicas                  rollout loop: ledger pending → running
    GroupsReturned      replicas                  rollout loop: ledger running → pending
    OutputReceived      replicas                  rollout loop: to be scored
    GroupsTrained       training loop             answer log
    HeldOutAnswered     evaluation                answer log
    tracking.Record     whoever did it            tracker: the run's files; the display, of a Decision

Events are facts: the one who emits them has changed its own state already, and needs no answer. A handler runs at once,
to its end, before ``emit`` returns, so what it does is done when the emitter goes on; what a handler raises stops the
run. Nobody subscribes after the parts are put together (``rlserve.controller.build``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlserve.engine.requests.request import RequestOutput
from rlserve.manager.policies.base import Role
from rlserve.rollout.groups import ScoredAnswer, ScoredGroup
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
class GroupsStarted(ControllerEvent):
    """A replica was given prompt groups."""

    group_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GroupsReturned(ControllerEvent):
    """A replica left or was lost, and these prompt groups wait again."""

    group_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OutputReceived(ControllerEvent):
    """A replica finished, or refused, a prompt group."""

    slot_id: str
    output: RequestOutput


@dataclass(frozen=True, kw_only=True)
class GroupsTrained(ControllerEvent):
    """A training step was done on ``groups`` and published."""

    step: int
    groups: Sequence[ScoredGroup]


@dataclass(frozen=True, kw_only=True)
class HeldOutAnswered(ControllerEvent):
    """The policy answered held-out prompts after ``step`` steps."""

    step: int
    answers: Sequence[ScoredAnswer]


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
