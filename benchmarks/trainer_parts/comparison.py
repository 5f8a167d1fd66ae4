"""What the measurements say: ratios within rounds, checks, a table for people, JSON for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from checks import Check
from machine import circumstances
from rich.table import Table

from trainer_parts.base import PHASES, Case, Outcome
from trainer_parts.rounds import CaseResult, PeerResult

_COLUMNS = ("ours", "peer", "ratio", "rounds", "bar")
_CAPTION = (
    "Medians over the rounds. Ratio: the peer's time by ours, of memory ours by the peer's; its median, lowest and "
    "highest within a round. Shares are of our step."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours and a peer on a case, over the rounds that both have."""

    ours: float
    """Median of the values."""
    peer: float
    ratios: tuple[float, ...]
    """Of each round: how many times the peer's time is ours; of memory, ours by the peer's."""

    @property
    def ratio(self) -> float:
        """The median."""
        return median(self.ratios)


def compare(result: CaseResult) -> Comparison | None:
    """None where there is no round that both have."""
    pairs = list(zip(result.ours.outcomes, result.peer.outcomes, strict=False))
    if not pairs:
        return None
    ratios = tuple(
        ours.value / peer.value if result.case.lower_ratio_wins else peer.value / ours.value for ours, peer in pairs
    )
    return Comparison(
        ours=median(ours.value for ours, _ in pairs), peer=median(peer.value for _, peer in pairs), ratios=ratios
    )


def shares(outcomes: Sequence[Outcome], case: Case) -> dict[str, float]:
    """Of our step, medians over the rounds: what each phase takes of it. Empty where the case has no phases."""
    told = [outcome for outcome in outcomes if outcome.phases_s and case.kind in ("step", "score")]
    if not told:
        return {}
    return {phase: median(outcome.phases_s[phase] / _step_s(outcome) for outcome in told) for phase in PHASES}


def _step_s(outcome: Outcome) -> float:
    """Of a training to a score, what its steps took each."""
    return outcome.remarks.get("s a step", outcome.value)


def checks(results: Sequence[CaseResult]) -> list[Check]:
    """One for each case that has a bar and was measured."""
    found = []
    for result in results:
        compared, bar = compare(result), result.case.bar
        if compared is not None and bar is not None:
            found.append(
                Check(
                    name=f"trainer: {result.case.name}, {ratio_name(result.case)}",
                    value=compared.ratio,
                    bar=bar,
                    at_least=not result.case.lower_ratio_wins,
                )
            )
    return found


def ratio_name(case: Case) -> str:
    """In words."""
    return f"ours ÷ {case.peer}" if case.lower_ratio_wins else f"{case.peer} ÷ ours"


def table(results: Sequence[CaseResult]) -> Table:
    """One row a case."""
    view = Table(title="Training beside its peers", caption=_CAPTION)
    for heading in ("case", "unit"):
        view.add_column(heading, no_wrap=True)
    for heading in (*_COLUMNS, *PHASES):
        view.add_column(heading, justify="right")
    for result in results:
        view.add_row(*_cells(result))
    return view


def _cells(result: CaseResult) -> list[str]:
    case, compared = result.case, compare(result)
    parts = shares(result.ours.outcomes, case)
    of_phases = [f"{parts[phase]:.0%}" if parts else "" for phase in PHASES]
    if compared is None:
        ours = f"{median(outcome.value for outcome in result.ours.outcomes):.4g}" if result.ours.outcomes else "missing"
        return [case.name, case.unit, ours, _missing_in_short(result.peer), "", "", "", *of_phases]
    return [
        case.name,
        case.unit,
        f"{compared.ours:.4g}",
        f"{compared.peer:.4g}",
        f"{compared.ratio:.2f}",
        f"{min(compared.ratios):.2f}–{max(compared.ratios):.2f}",
        "" if case.bar is None else f"{'≤' if case.lower_ratio_wins else '≥'} {case.bar:g}",
        *of_phases,
    ]


def _missing_in_short(peer: PeerResult) -> str:
    return "" if peer.missing is None else peer.missing.partition(":")[0]


def report(results: Sequence[CaseResult], *, num_threads: int) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        **circumstances(),
        "versions": _versions(results),
        "num_threads": num_threads,
        "checks": [check.line() for check in checks(results)],
        "cases": [_case_report(result) for result in results],
    }


def _versions(results: Sequence[CaseResult]) -> dict[str, dict[str, str]]:
    """Of each side that was there."""
    return {side.peer: side.versions for result in results for side in (result.ours, result.peer) if side.versions}


def _case_report(result: CaseResult) -> dict[str, Any]:
    compared = compare(result)
    return {
        "case": asdict(result.case),
        "unit": result.case.unit,
        "load_average": result.load_average,
        "ratio_is": ratio_name(result.case),
        "median_ratio": None if compared is None else compared.ratio,
        "ratios": [] if compared is None else list(compared.ratios),
        "shares_of_our_step": shares(result.ours.outcomes, result.case),
        "ours": asdict(result.ours),
        "peer": asdict(result.peer),
    }
