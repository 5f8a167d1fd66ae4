"""What all parts of a run share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rlserve.controller.clock import RunClock
from rlserve.controller.counters import Counters
from rlserve.controller.events import EventBus
from rlserve.controller.signal import Signal
from rlserve.pool.pacing.verdict import PacingBook
from rlserve.rollout.admission import PromptAdmission
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.group_filter import GroupFilter
from rlserve.rollout.groups import ScoredGroup
from rlserve.rollout.ledger import Ledger
from rlserve.rollout.requests.router import Router


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """Time, counts, events and tasks of one run."""

    clock: RunClock
    counters: Counters
    events: EventBus
    changed: Signal
    """Notified whenever a loop may find that it can go on."""
    tasks: asyncio.TaskGroup
    """For work in the background, whose failure stops the run."""
    pacing: PacingBook = field(default_factory=PacingBook)
    """How the times of paced slots come out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Books:
    """The owners of state on the rollout side: pure bookkeeping, no process and no clock."""

    ledger: Ledger
    admission: PromptAdmission
    buffer: SampleBuffer[ScoredGroup]
    router: Router
    group_filter: GroupFilter | None = None
    """None keeps all groups."""
