"""Draw whether moves paid, for the README: one run with moves beside static splits, as benchmarks/coscheduling.py left
them in its folder.

python benchmarks/coscheduling.py --scenario kept-rises --seeds 1 --folder DIR
python benchmarks/moves_picture.py DIR [--scenario NAME] [--seed N] [--output FILE]

::

    prompt groups trained, by time: with moves, the best static split, that of the start
    share of groups kept: the load
    who had which slot, in the run with moves
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coscheduling import SCENARIOS, Scenario
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlserve.tracking import colours, names
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.report.png import STYLE
from rlserve.tracking.report.png_panels import draw_slot_rows
from rlserve.tracking.report.series import Series, merge_steps, running_mean, series
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.timeline.ownership import SlotTimeline, slot_timelines, work_start_s

TARGET = Path(__file__).parent.parent / "docs" / "images" / "moves.png"
DOTS_PER_INCH = 100


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run trained, by its time since work began."""

    num_rollout: int | None
    """Of a static run; None with moves."""
    groups: Series
    kept: Series
    slots: tuple[SlotTimeline, ...]
    start_s: float

    @property
    def span_s(self) -> float:
        """From the end of the first step to the end of the last, as the benchmark counts."""
        return self.groups.x[-1] - self.groups.x[0]

    @property
    def end_s(self) -> float:
        """Of the last step, since work began."""
        return self.groups.x[-1] - self.start_s


def main() -> int:
    """Draw the picture; 2 where runs are missing."""
    parser = argparse.ArgumentParser(prog="benchmarks/moves_picture.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="that benchmarks/coscheduling.py was given")
    parser.add_argument("--scenario", default="kept-rises", choices=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    scenario = SCENARIOS[arguments.scenario]
    courses = read_courses(arguments.folder, scenario, arguments.seed)
    if None not in courses or len(courses) < 2:
        command = f"benchmarks/coscheduling.py --scenario {scenario.name} --folder {arguments.folder}"
        print(f"{arguments.folder}: no runs with moves and without that ended; python {command}", file=sys.stderr)
        return 2
    with rc_context({**STYLE, "font.size": 8.5}):
        figure = draw(courses, scenario)
        FigureCanvasAgg(figure)
        figure.savefig(arguments.output, dpi=DOTS_PER_INCH, facecolor="white")
    print(arguments.output)
    return 0


def read_courses(folder: Path, scenario: Scenario, seed: int) -> dict[int | None, Course]:
    """By the number of slots in rollout, those that ended; None has moves."""
    wanted = {None: "moves", **{split: f"static-{split}" for split in scenario.splits}}
    paths = {split: folder / f"{scenario.name}-{name}-{seed}" for split, name in wanted.items()}
    return {split: _read(path, split) for split, path in paths.items() if (path / "summary.json").exists()}


def _read(path: Path, num_rollout: int | None) -> Course:
    folder = RunFolder.open(path)
    events = read_json_lines(folder.events_file)
    steps = [event for event in events if event["event"] == "step"]
    slots = slot_timelines(events, steps[-1]["time_s"])
    metrics = merge_steps(read_json_lines(folder.metrics_file))
    num_groups, groups = 0, []
    for step in steps:
        num_groups += step["num_groups"]
        groups.append(num_groups)
    return Course(
        num_rollout=num_rollout,
        groups=Series(tuple(step["time_s"] for step in steps), tuple(groups)),
        kept=series(metrics, names.TIME, names.KEPT_SHARE),
        slots=slots,
        start_s=work_start_s(slots),
    )


def best_static(courses: Mapping[int | None, Course]) -> int:
    """The split that was done first."""
    return min((split for split in courses if split is not None), key=lambda split: courses[split].span_s)


def draw(courses: Mapping[int | None, Course], scenario: Scenario) -> Figure:
    """Three panels over one time axis."""
    moving, best = courses[None], best_static(courses)
    figure = Figure(figsize=(9.6, 5.6))
    above, middle, below = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [2.6, 0.7, 2.4]})
    figure.subplots_adjust(left=0.105, right=0.985, top=0.93, bottom=0.085, hspace=0.32)
    _draw_groups(above, courses, best, scenario.start)
    middle.plot([x - moving.start_s for x in moving.kept.x], running_mean(moving.kept.y), color=colours.REWARD)
    middle.set_ylim(0, 1.05)
    middle.set_title("share of prompt groups that is kept: the load drifts as the policy learns")
    draw_slot_rows(below, _since_start(moving))
    below.set_title("who has which slot, with moves")
    below.set_xlabel(f"{'modelled ' if scenario.run_file == 'conf/paced.yaml' else ''}seconds")
    below.set_xlim(0, max(each.end_s for each in courses.values()) * 1.01)
    return figure


def _draw_groups(axes: Axes, courses: Mapping[int | None, Course], best: int, start: int) -> None:
    moving = courses[None]
    shown = {best: colours.QUEUE, **({start: colours.MUTED} if start != best and start in courses else {})}
    for split, colour in shown.items():
        course, what = courses[split], "best static split" if split == best else "split of the start"
        longer = course.span_s / moving.span_s - 1.0
        label = f"{what}, {split} roll out: {course.span_s:.0f} s ({longer:+.1%})"
        _draw_course(axes, course, colour, label)
    _draw_course(axes, moving, colours.OWNER_COLOURS["rollout"], f"with moves: {moving.span_s:.0f} s", width=2.4)
    _mark_gap(axes, moving, courses[best])
    axes.set_ylim(0, 1.15 * moving.groups.y[-1])
    axes.set_title("prompt groups trained, and how long the same work takes")
    axes.legend(loc="lower right")


def _mark_gap(axes: Axes, moving: Course, static: Course) -> None:
    """How much sooner the work is done."""
    first, last = sorted((moving.end_s, static.end_s))
    height, word = moving.groups.y[-1], "sooner" if moving.end_s < static.end_s else "later"
    axes.annotate("", (first, height), (last, height), arrowprops={"arrowstyle": "<->", "color": colours.TEXT})
    text = f"{abs(static.span_s - moving.span_s):.0f} s {word}"
    axes.annotate(text, ((first + last) / 2, height), (0, 5), textcoords="offset points", ha="center", fontsize=8)


def _draw_course(axes: Axes, course: Course, colour: str, label: str, *, width: float = 1.6) -> None:
    x = [time_s - course.start_s for time_s in course.groups.x]
    axes.plot(x, course.groups.y, color=colour, linewidth=width, label=label)
    axes.plot(x[-1:], course.groups.y[-1:], linestyle="none", marker="o", markersize=5, color=colour)


def _since_start(course: Course) -> tuple[SlotTimeline, ...]:
    """The slots' times since work began."""
    return tuple(
        replace(
            slot,
            phases=tuple(
                replace(phase, start_s=phase.start_s - course.start_s, end_s=phase.end_s - course.start_s)
                for phase in slot.phases
            ),
        )
        for slot in course.slots
    )


if __name__ == "__main__":
    sys.exit(main())
