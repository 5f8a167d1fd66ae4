"""What a person sees of a running run: a live display in a terminal, one plain line a step elsewhere.

The controller hands over a :class:`ProgressState` as often as it likes; what is shown is a pure function of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlserve.tracking.colours import OWNER_COLOURS

MAX_NUM_SQUARES = 12
"""Slots of one owner that are drawn one by one; more are drawn as a square and a number."""
BAR_WIDTH = 28
NUM_STEPS_OF_ESTIMATE = 10


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """Everything that the display shows. None is what is not known yet."""

    name: str
    """Of the run."""
    status: str
    """What the run is doing: ``starting workers``, ``training`` …"""
    step: int
    """Training steps done."""
    num_steps: int
    elapsed_s: float
    time_left_s: float | None = None
    reward: float | None = None
    kl: float | None = None
    loss: float | None = None
    """Of a run that learns from a data set: it has neither reward nor rollout."""
    queue_length: int | None = None
    num_train: int = 0
    num_rollout: int = 0
    num_moving: int = 0
    num_dead: int = 0
    rollout_tokens_per_s: float | None = None
    weight_version: int | None = None
    last_decision: str = ""


def estimate_time_left_s(step_durations_s: Sequence[float], num_steps_left: int) -> float | None:
    """Time that the steps still to do will take if they are like the last ones; None before the first step."""
    if not step_durations_s:
        return None
    return median(step_durations_s[-NUM_STEPS_OF_ESTIMATE:]) * num_steps_left


def format_duration(seconds: float) -> str:
    """``4:07`` or ``1:02:33``."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


def render_line(state: ProgressState) -> str:
    """One line of plain text, ASCII only but for the names in it."""
    parts = [
        f"[{format_duration(state.elapsed_s)}]",
        f"step {state.step}/{state.num_steps}",
        *(_numbers_of_rollout(state) if state.loss is None else _numbers_of_data(state)),
    ]
    if state.time_left_s is not None:
        parts.append(f"{format_duration(state.time_left_s)} left")
    return "  ".join(parts)


def _numbers_of_rollout(state: ProgressState) -> list[str]:
    return [
        f"reward {_number(state.reward, '.3f')}",
        f"kl {_number(state.kl, '.4f')}",
        f"queue {_number(state.queue_length, 'd')}",
        *(f"{owner} {count}" for owner, count in _owners(state)),
        f"{_number(state.rollout_tokens_per_s, ',.0f')} tokens/s",
        f"weights v{state.weight_version}" if state.weight_version is not None else "no weights yet",
    ]


def _numbers_of_data(state: ProgressState) -> list[str]:
    owners = (f"{owner} {count}" for owner, count in _owners(state) if owner != "rollout")
    return [f"loss {_number(state.loss, '.4f')}", *owners]


def render_live(state: ProgressState, *, square: str = "■") -> RenderableType:
    """The live display: four lines, legible from 72 columns on."""
    bar = ProgressBar(
        total=state.num_steps,
        completed=state.step,
        width=BAR_WIDTH,
        complete_style=OWNER_COLOURS["train"],
        finished_style=OWNER_COLOURS["train"],
    )
    heading = Table.grid(padding=(0, 2))
    heading.add_row(Text(f"step {state.step}/{state.num_steps}", style="bold"), bar, _time(state))
    numbers = [
        _labelled("reward", _number(state.reward, ".3f")),
        _labelled("KL", _number(state.kl, ".4f")),
        _labelled("weights", "none yet" if state.weight_version is None else f"v{state.weight_version}"),
        _labelled("rollout", f"{_number(state.rollout_tokens_per_s, ',.0f')} tokens/s"),
    ]
    owners, queue = _owners(state), [_labelled("queue", _number(state.queue_length, "d"))]
    if state.loss is not None:
        numbers, queue = [_labelled("loss", _number(state.loss, ".4f"))], []
        owners = [(owner, count) for owner, count in owners if owner != "rollout"]
    split = Text("  ").join([*(_squares(owner, count, square) for owner, count in owners), *queue])
    name = Text.assemble((state.name, "bold"), "  ", (state.status, "dim"), no_wrap=True, overflow="ellipsis")
    lines: list[RenderableType] = [name, heading, Text("  ").join(numbers), split]
    if state.last_decision:
        lines.append(Text(f"last decision: {state.last_decision}", style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def _time(state: ProgressState) -> Text:
    text = Text(f"{format_duration(state.elapsed_s)} gone")
    if state.time_left_s is not None:
        text.append(f", about {format_duration(state.time_left_s)} left")
    return text


def _owners(state: ProgressState) -> list[tuple[str, int]]:
    """Train and rollout always; moving and dead slots only where there are any."""
    owners = [("train", state.num_train), ("rollout", state.num_rollout)]
    return owners + [(owner, n) for owner, n in (("moving", state.num_moving), ("dead", state.num_dead)) if n]


def _squares(owner: str, count: int, square: str) -> Text:
    drawn = square * count if count <= MAX_NUM_SQUARES else f"{square} x {count}"
    return Text.assemble((f"{owner} ", "dim"), (drawn or "-", OWNER_COLOURS[owner]))


def _labelled(label: str, value: str) -> Text:
    return Text.assemble((f"{label} ", "dim"), value)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


class Progress(ABC):
    """Shows the run to a person."""

    def __init__(self) -> None:
        self._state: ProgressState | None = None

    def update(self, state: ProgressState) -> None:
        """Show the state. Cheap enough to be called several times a second."""
        self._state = state
        self._show(state)

    @property
    def state(self) -> ProgressState | None:
        """What is shown."""
        return self._state

    def show_status(self, status: str) -> None:
        """Show the last state again, with what the run is doing now."""
        if self._state is not None:
            self.update(replace(self._state, status=status))

    @abstractmethod
    def _show(self, state: ProgressState) -> None:
        """Show the state."""

    def close(self) -> None:
        """Leave the terminal as it should be."""
        return


class NoProgress(Progress):
    """Shows nothing."""

    def _show(self, state: ProgressState) -> None:
        return


class PlainProgress(Progress):
    """One line a step, and one whenever the run begins to do something else."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._shown_step = 0
        self._shown_status = ""

    def _show(self, state: ProgressState) -> None:
        if state.status != self._shown_status:
            self._write(f"[{format_duration(state.elapsed_s)}]  {state.name}: {state.status}")
        if state.step != self._shown_step:
            self._write(render_line(state))
        self._shown_step, self._shown_status = state.step, state.status

    def _write(self, line: str) -> None:
        self._console.file.write(line + "\n")
        self._console.file.flush()


class LiveProgress(Progress):
    """Redraws a few lines at the bottom of the terminal. What is logged through the same console, or written to
    standard output and error, scrolls by above them."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._square = "■" if console.encoding.startswith("utf") else "#"
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def _show(self, state: ProgressState) -> None:
        self._live.update(render_live(state, square=self._square), refresh=True)

    def close(self) -> None:
        self._live.stop()


def create_progress(kind: Literal["auto", "live", "plain", "none"], console: Console) -> Progress:
    """The display for a console: ``auto`` is live where the console can redraw lines, plain elsewhere."""
    if kind == "none":
        return NoProgress()
    can_redraw = console.is_terminal and not console.is_dumb_terminal
    return LiveProgress(console) if kind != "plain" and can_redraw else PlainProgress(console)
