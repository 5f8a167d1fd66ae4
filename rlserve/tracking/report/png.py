"""``report.png``: the picture of a run on one page, by matplotlib without a display.

::

    headline; what the moves came to, in words
    reward by step (wide)                     | KL
                                              | entropy
    answer length | shares | engine–trainer | staleness      by step
    queue length by time, thresholds, moves, steps
    who has which slot, by time
    tokens per second, by time
    utilisation by role, by time
    slots' time | rate after each move | staleness | efficiency      bars
    some answers

A run that learns from a data set has only what is left without the policy's panels and the queue.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlserve.tracking import colours
from rlserve.tracking.answers import Answer
from rlserve.tracking.report.bar_panels import bar_panels
from rlserve.tracking.report.curve_panels import step_panels, throughput_panel, time_label, utilisation_panel
from rlserve.tracking.report.png_panels import (
    draw_bars,
    draw_curves,
    draw_queue,
    draw_reward,
    draw_slots,
    label_steps,
    mark_times,
)
from rlserve.tracking.report.report_data import ReportData

DOTS_PER_INCH = 130
# Lengths in inches, so that the gaps stay the same however many slots there are.
PAGE_WIDTH = 13.0
LEFT, RIGHT, BOTTOM = 1.1, 0.35, 0.65
HEADLINE_HEIGHT = 0.9
GAPS_ABOVE = {
    "headline": 0.25,
    "reward": 0.5,
    "steps": 0.85,
    "queue": 1.2,
    "slots": 0.5,
    "throughput": 0.5,
    "utilisation": 0.5,
    "bars": 1.0,
    "answers": 0.75,
}
GAP_BELOW_REWARD = 1.15
"""Where the slots are next: room for what stands below its axis."""
STEP_NUMBERS_HEIGHT = 14.0
"""Points, above the first panel over time."""
ANSWER_HEIGHT = 0.2
NOTE_HEIGHT = 0.2
"""Of a line of words."""
NOTE_WIDTH = 165
"""Characters of it."""
MAX_NUM_CHARACTERS = 150
"""Of an answer's line."""
STYLE: Any = {
    "font.size": 9.5,
    "text.color": colours.TEXT,
    "axes.labelcolor": colours.TEXT,
    "axes.edgecolor": colours.MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": colours.GRID,
    "xtick.color": colours.TEXT,
    "ytick.color": colours.TEXT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}

Box = tuple[float, float, float, float]
"""Left, bottom, width and height, as shares of the page."""


def write_png(data: ReportData, path: Path) -> None:
    """Draw the picture."""
    with rc_context(STYLE):
        figure = draw(data)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")


def draw(data: ReportData) -> Figure:
    """The matplotlib figure."""
    slots_height = min(max(0.27 * len(data.slots), 0.9), 5.5)
    lines = [line for note in data.notes for line in textwrap.wrap(note, NOTE_WIDTH)]
    heights = {
        "headline": HEADLINE_HEIGHT + _notes_height(lines),
        "reward": 2.6,
        "steps": 1.2,
        "queue": 1.9,
        "slots": slots_height,
        "throughput": 1.3,
        "utilisation": 1.0,
        "bars": 1.2,
        "answers": ANSWER_HEIGHT * (len(data.answers) + 1),
    }
    gaps = GAPS_ABOVE
    if not data.generates:
        heights = {name: height for name, height in heights.items() if name not in ("steps", "queue")}
        gaps = {**gaps, "slots": GAP_BELOW_REWARD}
    page_height = sum(heights.values()) + sum(gaps[name] for name in heights) + BOTTOM
    figure = Figure(figsize=(PAGE_WIDTH, page_height))
    boxes: dict[str, Box] = {}
    top = page_height
    for name, height in heights.items():
        top -= gaps[name] + height
        boxes[name] = (LEFT / PAGE_WIDTH, top / page_height, 1 - (LEFT + RIGHT) / PAGE_WIDTH, height / page_height)
    _draw_headline(figure.add_axes(boxes["headline"]), data, lines)
    _draw_steps(figure, boxes["reward"], boxes.get("steps"), data)
    _draw_times(figure, boxes, data)
    for box, bars in zip(_side_by_side(boxes["bars"], 4), bar_panels(data), strict=False):
        draw_bars(figure.add_axes(box), bars)
    _draw_answers(figure.add_axes(boxes["answers"]), data.answers)
    return figure


def _notes_height(lines: Sequence[str]) -> float:
    """With a little room above them."""
    return NOTE_HEIGHT * (len(lines) + 0.6) if lines else 0.0


def _draw_headline(axes: Axes, data: ReportData, lines: Sequence[str]) -> None:
    """The name, the numbers below it, and ``lines`` of words below these; heights are inches."""
    notes_height = _notes_height(lines)
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(-notes_height, HEADLINE_HEIGHT)
    axes.text(0, HEADLINE_HEIGHT, data.name, fontsize=16, fontweight="bold", va="top", parse_math=False)
    for index, line in enumerate(lines):
        axes.text(0, -NOTE_HEIGHT * (index + 0.6), line, fontsize=8.5, va="top", parse_math=False)
    widths = [max(len(what), 1.25 * len(how_much)) + 6 for what, how_much in data.headline]
    for index, (what, how_much) in enumerate(data.headline):
        x = sum(widths[:index]) / sum(widths)
        axes.text(x, 0.24 * HEADLINE_HEIGHT, how_much, fontsize=11.5, fontweight="bold", va="bottom")
        axes.text(x, 0.16 * HEADLINE_HEIGHT, what, fontsize=8.5, color=colours.MUTED, va="top")


def _draw_steps(figure: Figure, reward_box: Box, small_box: Box | None, data: ReportData) -> None:
    """The panels over training steps; without ``small_box`` the first alone."""
    left, bottom, width, height = reward_box
    if small_box is None:
        reward = figure.add_axes(reward_box)
        draw_reward(reward, data)
        reward.set_xlabel("training step")
        _label_whole_steps(reward)
        return
    reward = figure.add_axes((left, bottom, 0.63 * width, height))
    draw_reward(reward, data)
    reward.set_xlabel("training step")
    kl, entropy, *others = step_panels(data)
    side_left, side_width, side_height = left + 0.7 * width, 0.3 * width, 0.38 * height
    above = figure.add_axes((side_left, bottom + height - side_height, side_width, side_height), sharex=reward)
    draw_curves(above, kl)
    above.tick_params(labelbottom=False)
    draw_curves(figure.add_axes((side_left, bottom, side_width, side_height), sharex=reward), entropy)
    for box, panel in zip(_side_by_side(small_box, len(others)), others, strict=True):
        axes = figure.add_axes(box, sharex=reward)
        draw_curves(axes, panel)
        axes.set_xlabel("training step")
    _label_whole_steps(reward)


def _label_whole_steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def _side_by_side(box: Box, number: int) -> list[Box]:
    left, bottom, width, height = box
    gap = 0.055 * width
    each = (width - (number - 1) * gap) / number
    return [(left + index * (each + gap), bottom, each, height) for index in range(number)]


def _draw_times(figure: Figure, boxes: Mapping[str, Box], data: ReportData) -> None:
    """The panels over time, one below the other."""
    queue = figure.add_axes(boxes["queue"]) if "queue" in boxes else None
    slots = figure.add_axes(boxes["slots"], sharex=queue)
    throughput, computing = (figure.add_axes(boxes[name], sharex=slots) for name in ("throughput", "utilisation"))
    highest = slots if queue is None else queue
    if queue is not None:
        draw_queue(queue, data)
    draw_slots(slots, data, lift=STEP_NUMBERS_HEIGHT if queue is None else 0.0)
    draw_curves(throughput, throughput_panel(data), legend_above=True)
    draw_curves(computing, utilisation_panel(data), legend_above=True)
    for axes in {highest, slots, throughput}:
        axes.tick_params(labelbottom=False, bottom=False)
    for axes in {highest, slots, throughput, computing}:
        mark_times(axes, data)
    label_steps(highest, data)
    computing.set_xlabel(time_label(data))
    highest.set_xlim(data.start_s, max(data.end_s, data.start_s + 1e-3))


def _draw_answers(axes: Axes, answers: tuple[Answer, ...]) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    num_lines = len(answers) + 1
    axes.set_ylim(0, num_lines)
    if not answers:
        return
    axes.text(0, num_lines, f"some answers of step {answers[0].step}, the worst first", fontweight="bold", va="top")
    for index, answer in enumerate(answers, start=1):
        line = answer_line(answer, MAX_NUM_CHARACTERS)
        axes.text(0, num_lines - index - 0.15, line, fontsize=8.5, va="top", parse_math=False)


def answer_line(answer: Answer, max_num_characters: int) -> str:
    """An answer in one line: reward, prompt, response, reference; what the font may not have is left out."""
    reward = "-" if answer.reward is None else f"{answer.reward:.3g}"
    parts = [f"reward {reward}:", _one_line(answer.prompt, max_num_characters // 3), "→"]
    reference = "" if answer.reference is None else f"  (reference {_one_line(str(answer.reference), 30)})"
    room = max_num_characters - sum(map(len, parts)) - len(reference) - len(parts)
    return " ".join([*parts, _one_line(answer.response, room) or "(nothing)"]) + reference


def _one_line(text: str, max_num_characters: int) -> str:
    plain = " ".join("".join(letter if letter < "\u0250" else "?" for letter in text).split())
    return plain if len(plain) <= max_num_characters else plain[: max_num_characters - 1] + "…"
