"""What interruptions cost a run in time, as its own files tell it."""

from __future__ import annotations

import sys
from pathlib import Path

from rlserve.tracking.cost.interruptions import Interruption
from rlserve.tracking.cost.reading import read_cost
from rlserve.tracking.run_folder import RunFolder


def interruptions(folder: Path, what: str) -> tuple[Interruption, ...]:
    """Those of a run, which are written out, for whoever runs the tests for their figures (``pytest -rP``)."""
    found = read_cost(RunFolder(folder)).interruptions
    for each in found:
        again = f"{each.num_again} steps again in {each.again_s:.1f} s"
        parts = f"{each.away_s:.1f} s away, {each.start_s:.1f} s until a step, {again}"
        lost = f"{each.lost_s / 60:.2f} minutes lost"
        sys.stdout.write(f"{what}, {each.ended_by} after step {each.step}: {lost} ({parts})\n")
    return found
