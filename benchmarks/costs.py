"""Measure what counting a run's costs takes of a step: the ledger's part of every event, and the metrics of each step.

python benchmarks/costs.py [--json FILE]

Two made-up runs: the default one, with 4 slots and steps of 0.2 s, and one with 1,000 slots, of which 400 train for
30 s a step. Their replicas tell as often as in the first ten minutes of a run, and each takes every version of the
weights. What counts is the time of the processor. Half of each run comes before it is taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from checks import Check, report

from rlserve.tracking.cost.figures import CostFigures
from rlserve.tracking.cost.ledger import CostLedger
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.events import (
    Event,
    ReplicaEvent,
    RunEvent,
    SlotEvent,
    StageEvent,
    StepEvent,
    TokensEvent,
    WeightEvent,
)

MAX_SHARE = 0.005
PRICES = Prices(currency="EUR", date="2026-11-01", per_hour={"H100": 2.0, "H200": 3.0})


@dataclass(frozen=True, kw_only=True)
class MadeUpRun:
    """So many trainers and replicas, in steps that are all alike."""

    name: str
    num_trainers: int
    num_replicas: int
    step_s: float
    stretch_s: float
    """Between two lines of a replica."""
    num_steps: int


RUNS = (
    MadeUpRun(name="4 slots, steps of 0.2 s", num_trainers=2, num_replicas=2, step_s=0.2, stretch_s=2.0, num_steps=400),
    MadeUpRun(
        name="1,000 slots, steps of 30 s", num_trainers=400, num_replicas=600, step_s=30.0, stretch_s=2.0, num_steps=20
    ),
)


def begin(run: MadeUpRun) -> Iterator[Event]:
    """All slots have their role."""
    yield RunEvent(time_s=0.0, begin_s=0.0, resumed=False, step=0)
    for role, slot_type, number in (("train", "H100", run.num_trainers), ("rollout", "H200", run.num_replicas)):
        for slot_id in slot_ids(slot_type, number):
            yield SlotEvent(
                time_s=0.0,
                slot_id=slot_id,
                slot_type=slot_type,
                gang_id=slot_id,
                owner=role,  # type: ignore[arg-type]
                state=role,
            )
    yield StageEvent(time_s=0.0, stage="training")


def slot_ids(slot_type: str, number: int) -> list[str]:
    """Of all slots of a type."""
    return [f"{slot_type}/{index}" for index in range(number)]


def step_events(run: MadeUpRun, step: int) -> Iterator[Event]:
    """What happens in a step."""
    begin_s = (step - 1) * run.step_s
    end_s = begin_s + run.step_s
    replicas = slot_ids("H200", run.num_replicas)
    num_told = int(end_s / run.stretch_s) - int(begin_s / run.stretch_s)
    for part in range(num_told):
        time_s = begin_s + (part + 1) * run.step_s / num_told
        for slot_id in replicas:
            yield ReplicaEvent(
                time_s=time_s,
                slot_id=slot_id,
                begin_s=time_s - run.stretch_s,
                busy_s=0.8 * run.stretch_s,
                running_s=run.stretch_s,
                num_tokens=1000,
                longest_gap_s=0.0,
            )
    for slot_id in replicas:
        yield WeightEvent(time_s=end_s, version=step, slot_id=slot_id, duration_s=0.1, pause_s=0.01)
    yield TokensEvent(time_s=end_s, step=step, num_trained=900 * run.num_replicas)
    yield StepEvent(
        time_s=end_s,
        step=step,
        begin_s=begin_s,
        work_begin_s=begin_s + 0.1 * run.step_s,
        work_end_s=begin_s + 0.95 * run.step_s,
        slot_ids=tuple(slot_ids("H100", run.num_trainers)),
        num_groups=64,
        num_tokens=100_000,
    )


def share_of_step(run: MadeUpRun) -> float:
    """Of the time of a step, in the mean."""
    ledger = CostLedger()
    for event in begin(run):
        ledger.note(event)
    taken_s = 0.0
    for step in range(1, run.num_steps + 1):
        events: Sequence[Event] = list(step_events(run, step))
        start_s = time.process_time()
        for event in events:
            ledger.note(event)
        figures = CostFigures(statement=ledger.statement(step * run.step_s), prices=PRICES)
        figures.metrics()
        if step > run.num_steps / 2:
            taken_s += time.process_time() - start_s
    ledger.statement(run.num_steps * run.step_s).check_integrity()
    return taken_s / (run.num_steps - run.num_steps // 2) / run.step_s


def make() -> Iterator[Check]:
    """A check a run."""
    for run in RUNS:
        yield Check(name=f"share of a step, {run.name}", value=share_of_step(run), bar=MAX_SHARE, at_least=False)


if __name__ == "__main__":
    raise SystemExit(report(__doc__, make))
