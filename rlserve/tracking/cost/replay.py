"""The ledger of a run, from its ``events.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields

from rlserve.errors import DataError
from rlserve.tracking.cost.ledger import CostLedger
from rlserve.tracking.events import (
    EndEvent,
    Event,
    LostWorkEvent,
    ReplicaEvent,
    RunEvent,
    SlotEvent,
    StageEvent,
    StepEvent,
    TokensEvent,
    WeightEvent,
    WorkerEvent,
)
from rlserve.tracking.jsonl import Line
from rlserve.tracking.share_event import ShareEvent

_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        EndEvent,
        LostWorkEvent,
        ReplicaEvent,
        RunEvent,
        ShareEvent,
        SlotEvent,
        StageEvent,
        StepEvent,
        TokensEvent,
        WeightEvent,
        WorkerEvent,
    )
}
"""What the ledger looks at."""


def replay(events: Iterable[Line]) -> CostLedger:
    """From the events of a run, in their order.

    Raises:
        DataError: another version of rlserve wrote them.
    """
    ledger = CostLedger()
    for line in events:
        if (kind := _KINDS.get(line["event"])) is not None:
            ledger.note(_event(kind, line))
    return ledger


def _event(kind: type[Event], line: Line) -> Event:
    found = fields(kind)
    if missing := [each.name for each in found if each.default is MISSING and each.name not in line]:
        raise DataError(
            f"an event {kind.kind!r} of the run has no {', '.join(missing)}: another version of rlserve wrote it, and "
            "what the run cost cannot be told"
        )
    return kind(**{each.name: line[each.name] for each in found if each.name in line})
