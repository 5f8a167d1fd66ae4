"""What a run cost, from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlserve.tracking.cost.figures import CostFigures, Scores
from rlserve.tracking.cost.interruptions import Interruption, find_interruptions
from rlserve.tracking.cost.prices import read_prices
from rlserve.tracking.cost.replay import replay
from rlserve.tracking.cost.statement import StepCost
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import RunState, read_run_state


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Of one run, as far as it is."""

    state: RunState
    figures: CostFigures
    steps: tuple[StepCost, ...]
    interruptions: tuple[Interruption, ...]


def read_cost(folder: RunFolder, prices_file: Path | None = None) -> RunCost:
    """From the events of a run, whether it goes on, has ended or was killed; with the prices of ``prices_file``, or
    else those that the run was given.

    Raises:
        DataError: a file of the run is damaged, or was written by another version.
        UserError: the prices cannot be read.
    """
    state, events = read_run_state(folder), read_json_lines(folder.events_file)
    ledger = replay(events)
    if state.state == "dead":
        ledger.close(0.0, has_finished=False)
    path = prices_file or (folder.prices_file if folder.prices_file.exists() else None)
    figures = CostFigures(
        statement=ledger.statement(0.0),
        prices=None if path is None else read_prices(path),
        scores=Scores(before=state.held_out_before, after=state.held_out_after),
    )
    return RunCost(state=state, figures=figures, steps=ledger.steps, interruptions=find_interruptions(events))
