"""The panels that are bars: what stands in them, for whoever draws them. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.tracking import colours
from rlserve.tracking.hindsight.comparison import CERTAIN
from rlserve.tracking.report.report_data import ReportData
from rlserve.tracking.timeline.activity import Kind

MAX_NUM_MOVES = 8
"""Whose bars have room beside each other: the last ones."""
_SHOWN_KINDS: tuple[Kind, ...] = ("training", "generating", "idle", "syncing", "switching", "starting", "lost")


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars of one colour, one beside each label of their panel."""

    values: tuple[float, ...]
    colour: str
    label: str = ""
    errors: tuple[float, ...] = ()
    """How uncertain the values are, where that is known: drawn as whiskers."""


@dataclass(frozen=True, kw_only=True)
class BarPanel:
    """Horizontal bars, those of a label below each other, the first label on top."""

    title: str
    labels: tuple[str, ...]
    bars: tuple[Bars, ...]
    is_percent: bool = True
    """The values are shares, shown in percent; else numbers."""

    @property
    def has_values(self) -> bool:
        """Whether there is anything to draw."""
        return any(bars.values for bars in self.bars)

    def text(self, value: float) -> str:
        """What stands at a bar."""
        if not self.is_percent:
            return f"{value:.3g}"
        return f"{100 * value:.1g}" if 0.0 < abs(value) < 0.0095 else f"{100 * value:.0f}"


def bar_panels(data: ReportData) -> tuple[BarPanel, ...]:
    """How the slots were used: four panels; of a run that generates nothing, what their time went into alone."""
    if not data.generates:
        return (time_panel(data),)
    return (time_panel(data), moves_panel(data), staleness_panel(data), efficiency_panel(data))


def time_panel(data: ReportData) -> BarPanel:
    """What all slots' time went into, from the beginning of work on."""
    whole_s = data.usage.total_s()
    spent = [(kind, seconds / whole_s) for kind in _SHOWN_KINDS if (seconds := data.usage.total_s(kind)) > 0]
    return BarPanel(
        title="slots' time, %",
        labels=tuple(kind for kind, _ in spent),
        bars=(Bars(values=tuple(share for _, share in spent), colour=colours.QUEUE),),
    )


def moves_panel(data: ReportData) -> BarPanel:
    """How each series of moves was to change the rate of training, and how it did."""
    judged = [move for move in data.gains if move.realised is not None][-MAX_NUM_MOVES:]
    return BarPanel(
        title="change of rate by moves, %",
        labels=tuple(f"{move.time_s:.0f} s" for move in judged),
        bars=(
            Bars(values=tuple(move.predicted or 0.0 for move in judged), colour=colours.MUTED, label="predicted"),
            Bars(
                values=tuple(move.realised or 0.0 for move in judged),
                colour=colours.REWARD,
                label="realised",
                errors=tuple(CERTAIN * (move.realised_error or 0.0) for move in judged),
            ),
        ),
    )


def staleness_panel(data: ReportData) -> BarPanel:
    """Prompt groups by how many steps their oldest token was older than what it trained."""
    whole = sum(data.staleness.values())
    return BarPanel(
        title="staleness in steps, % of groups",
        labels=tuple(str(steps) for steps in data.staleness),
        bars=(Bars(values=tuple(n / whole for n in data.staleness.values()), colour=colours.STALENESS),),
    )


def efficiency_panel(data: ReportData) -> BarPanel:
    """The rate of training against what was possible; how that is known says ``hindsight.efficiency``."""
    found = data.efficiency
    if found is None:
        return BarPanel(title="groups trained/s", labels=(), bars=(), is_percent=False)
    return BarPanel(
        title="groups trained/s",
        labels=("this run", "best static", "oracle"),
        bars=(Bars(values=(found.realised, found.best_static, found.oracle), colour=colours.OWNER_COLOURS["train"]),),
        is_percent=False,
    )
