"""Who did what when in a simulated run, as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlserve.errors import UserError
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.simulation import SimulatedRun
from rlserve.simulate.spending import OWNERS
from rlserve.tracking.report.png import DOTS_PER_INCH, PAGE_WIDTH, STYLE
from rlserve.tracking.report.png_panels import draw_slot_rows
from rlserve.tracking.timeline.ownership import SlotTimeline, slot_timelines

_NUM_POINTS = 400


def timelines(scenario: Scenario, run: SimulatedRun) -> tuple[SlotTimeline, ...]:
    """A row a gang."""
    types = {gang.id: gang.type for gang in scenario.gangs}
    events = [
        {
            "event": "slot",
            "time_s": change.time_s,
            "slot_id": change.gang_id,
            "gang_id": change.gang_id,
            "slot_type": types[change.gang_id.partition("+")[0]],
            "state": str(change.after),
            "owner": OWNERS[change.after],
        }
        for change in run.history
    ]
    return slot_timelines(events, run.duration_s)


def write_timeline(scenario: Scenario, run: SimulatedRun, path: Path, *, title: str) -> None:
    """Draw the gangs' roles over the share of groups that is kept.

    Raises:
        UserError: the file cannot be written, or is of no kind that can be drawn.
    """
    rows = timelines(scenario, run)
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, 3.2 + min(max(0.27 * len(rows), 0.9), 8.0)), layout="constrained")
        FigureCanvasAgg(figure)
        slots, load = figure.subplots(2, 1, sharex=True, height_ratios=(max(3, len(rows) / 3), 2))
        draw_slot_rows(slots, rows)
        slots.set_title(title)
        points = [index / _NUM_POINTS for index in range(_NUM_POINTS + 1)]
        load.plot(
            [share * run.duration_s for share in points],
            [scenario.workload.kept_share(share) for share in points],
            linewidth=1.5,
        )
        load.set_ylim(0, 1.04)
        load.set_title("share of prompt groups that is kept")
        load.set_xlabel("seconds")
        try:
            figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
        except (OSError, ValueError) as error:
            raise UserError(f"the timeline cannot be written to {path}: {error}") from error
