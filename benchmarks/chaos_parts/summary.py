"""Figures of many faults: a row for each kind, and what is to be reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from checks import Check

from chaos_parts.base import LOSES, WRONG, Injury, Kind
from chaos_parts.verdict import Verdict

DETECTION_S = {Kind.KILL: 1.0, Kind.STOP: 15.0}
RECOVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of one kind of fault; None is what it has not."""

    name: str
    number: int
    detection_s: tuple[float, float] | None
    """Median and largest, as the next two."""
    recovery_s: tuple[float, float] | None
    lost_tokens: tuple[float, float] | None


def rows_of(injuries: Sequence[Injury]) -> list[Row]:
    """By the names of the faults. A worker that was hurt again before it was back counts in the detection alone."""
    return [
        _row(name, [injury for injury in injuries if injury.fault.name == name])
        for name in sorted({injury.fault.name for injury in injuries})
    ]


def checks_of(
    injuries: Sequence[Injury],
    verdicts: Sequence[Verdict],
    *,
    num_done: int,
    num_wanted: int,
    num_left: int,
    num_failed: int,
    least_score: float,
) -> list[Check]:
    """What is to be reached over all runs together."""
    found = [
        Check(name="moves and faults", value=num_done, bar=num_wanted),
        Check(name="runs that failed", value=num_failed, bar=0, at_least=False),
    ]
    zeros: dict[str, Callable[[Verdict], int]] = {
        "prompt groups or steps lost": lambda verdict: verdict.num_lost,
        "prompt groups trained twice": lambda verdict: verdict.num_trained_twice,
        "prompt groups staler than the bound": lambda verdict: verdict.num_too_stale,
        "prompt groups with a token without a version": lambda verdict: verdict.num_without_version,
        "weights that went back": lambda verdict: verdict.num_versions_back,
        "illegal changes of a worker's state": lambda verdict: verdict.num_illegal,
    }
    for name, read in zeros.items():
        found.append(Check(name=name, value=sum(map(read, verdicts)), bar=0, at_least=False))
    error = max((verdict.cost_error for verdict in verdicts), default=0.0)
    found.append(Check(name="costs that do not add up, largest share", value=error, bar=0.001, at_least=False))
    found.append(Check(name="processes left behind", value=num_left, bar=0, at_least=False))
    slow = [injury for injury in injuries if injury.fault.kind is Kind.SLOW]
    num_wrong = sum(injury.found_s is not None for injury in slow)
    found.append(Check(name="slow workers taken for dead", value=num_wrong, bar=0, at_least=False))
    num_missed = sum(injury.fault.kind in WRONG and injury.found_s is None for injury in injuries)
    found.append(Check(name="wrong replicas that no canary found", value=num_missed, bar=0, at_least=False))
    for kind, bar in DETECTION_S.items():
        values = _times(injuries, kind, lambda injury: injury.detection_s)
        if values:
            found.append(Check(name=f"{kind}: found, longest, s", value=max(values), bar=bar, at_least=False))
    recoveries = [time_s for kind in LOSES for time_s in _times(injuries, kind, lambda injury: injury.recovery_s)]
    if recoveries:
        value = statistics.median(recoveries)
        found.append(Check(name="back in service, median, s", value=value, bar=RECOVERY_S, at_least=False))
        found.append(Check(name="back in service, longest, s", value=max(recoveries), bar=RECOVERY_S, at_least=False))
        name = "back in service, less the time in which another lost worker was not found yet, longest, s"
        value = max(undisturbed_recoveries_s(injuries))
        found.append(Check(name=name, value=value, bar=RECOVERY_S, at_least=False))
    scores = [verdict.held_out_after for verdict in verdicts if verdict.held_out_after is not None]
    if scores:
        found.append(Check(name="held-out score after, least", value=min(scores), bar=least_score))
    return found


def undisturbed_recoveries_s(injuries: Sequence[Injury]) -> list[float]:
    """Of each worker that was lost and came back, how long that took without the time in which another one was lost
    and nobody knew: the trainers stand still until such a one is found, and nobody can join them."""
    lost = [injury for injury in injuries if injury.fault.kind in LOSES]
    recoveries = []
    for injury in lost:
        if injury.found_s is None or injury.back_s is None:
            continue
        hidden_s, until_s = 0.0, injury.found_s
        for other in sorted(lost, key=lambda each: each.done_s):
            if other is injury or other.found_s is None:
                continue
            begin_s, end_s = max(other.done_s, until_s), min(other.found_s, injury.back_s)
            if begin_s < end_s:
                hidden_s, until_s = hidden_s + end_s - begin_s, end_s
        recoveries.append(injury.back_s - injury.found_s - hidden_s)
    return recoveries


def table(rows: Sequence[Row]) -> list[str]:
    """Lines to print: medians, and the largest in brackets."""
    lines = [f"{'fault':24}{'number':>8}{'found, s':>18}{'back, s':>18}{'tokens again':>18}"]
    for row in rows:
        cells = [_cell(row.detection_s, ".2f"), _cell(row.recovery_s, ".2f"), _cell(row.lost_tokens, ",.0f")]
        lines.append(f"{row.name:24}{row.number:>8}" + "".join(f"{cell:>18}" for cell in cells))
    return lines


def _row(name: str, injuries: Sequence[Injury]) -> Row:
    loses = injuries[0].fault.kind in LOSES
    return Row(
        name=name,
        number=len(injuries),
        detection_s=_spread([each.detection_s for each in injuries if each.detection_s is not None]),
        recovery_s=_spread([each.recovery_s for each in injuries if each.recovery_s is not None]),
        lost_tokens=_spread([each.num_lost_tokens for each in injuries]) if loses else None,
    )


def _spread(values: Sequence[float]) -> tuple[float, float] | None:
    return (statistics.median(values), max(values)) if values else None


def _times(injuries: Sequence[Injury], kind: Kind, read: Callable[[Injury], float | None]) -> list[float]:
    return [value for each in injuries if each.fault.kind is kind and (value := read(each)) is not None]


def _cell(spread: tuple[float, float] | None, form: str) -> str:
    return "–" if spread is None else f"{spread[0]:{form}} ({spread[1]:{form}})"
