"""Events of a made-up run, for tests of the ledger."""

from __future__ import annotations

from typing import Any, cast

from rlserve.tracking.cost.ledger import CostLedger
from rlserve.tracking.cost.statement import Statement
from rlserve.tracking.cost.uses import Use
from rlserve.tracking.events import (
    EndEvent,
    Event,
    Owner,
    ReplicaEvent,
    RunEvent,
    SlotEvent,
    Stage,
    StageEvent,
    StepEvent,
    WorkerEvent,
)

OWNERS = {"train": "train", "rollout": "rollout", "called_to_train": "rollout", "dead": "dead", "gone": "gone"}


def begin(time_s: float = 0.0, *, resumed_step: int | None = None) -> RunEvent:
    return RunEvent(time_s=time_s, begin_s=time_s, resumed=resumed_step is not None, step=resumed_step or 0)


def end(time_s: float, exit_code: int = 0) -> EndEvent:
    return EndEvent(time_s=time_s, exit_code=exit_code, error=None)


def slot(time_s: float, slot_id: str, state: str, *, gang_id: str | None = None) -> SlotEvent:
    return SlotEvent(
        time_s=time_s,
        slot_id=slot_id,
        slot_type=slot_id.partition("/")[0],
        gang_id=gang_id or slot_id,
        owner=cast("Owner", OWNERS.get(state, "moving")),
        state=state,
    )


def worker(time_s: float, slot_id: str) -> WorkerEvent:
    return WorkerEvent(time_s=time_s, slot_id=slot_id, process_id=1, host="here")


def stage(time_s: float, name: Stage) -> StageEvent:
    return StageEvent(time_s=time_s, stage=name)


def step(
    number: int, begin_s: float, work_s: float, copy_s: float, end_s: float, *slots: str, **more: Any
) -> StepEvent:
    return StepEvent(
        time_s=end_s,
        step=number,
        begin_s=begin_s,
        work_begin_s=work_s,
        work_end_s=copy_s,
        slot_ids=slots,
        num_groups=4,
        num_tokens=1000,
        **more,
    )


def stretch(slot_id: str, begin_s: float, end_s: float, busy_s: float, num_tokens: int = 100) -> ReplicaEvent:
    return ReplicaEvent(
        time_s=end_s,
        slot_id=slot_id,
        begin_s=begin_s,
        busy_s=busy_s,
        running_s=busy_s,
        num_tokens=num_tokens,
        longest_gap_s=0.0,
    )


def ledger_of(*events: Event) -> CostLedger:
    ledger = CostLedger()
    for event in events:
        ledger.note(event)
    return ledger


def seconds(statement: Statement, role: str | None = None) -> dict[Use, float]:
    """Of each use that had any, to the microsecond; holds the sum rule on the way."""
    statement.check_integrity()
    found = {use: round(3600 * statement.hours_of(use, role=role), 6) for use in Use}
    return {use: value for use, value in found.items() if value}
