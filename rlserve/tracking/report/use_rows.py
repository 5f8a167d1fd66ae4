"""How the slots were used, in words: what stands below the picture beside the run's summary. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from rlserve.tracking.jsonl import Line
from rlserve.tracking.run_view import MoveView
from rlserve.tracking.timeline.usage import Usage


def use_headline(used: Usage) -> tuple[tuple[str, str], ...]:
    """The one number of it that a reader wants first."""
    return () if used.bubble is None else (("slots in use", f"{1 - used.bubble:.0%}"),)


def use_rows(used: Usage, gains: Sequence[MoveView], events: Iterable[Line]) -> list[tuple[str, str]]:
    """What, and how much."""
    rows: list[tuple[str, str]] = []
    roles = {"trainers": used.of_role("train"), "replicas": used.of_role("rollout")}
    shares = [f"{name} {share:.1%}" for name, share in roles.items() if share is not None]
    if used.bubble is not None:
        rows.append(
            ("computing, of the slots' time", f"{', '.join(shares)}; bubble (all that is not) {used.bubble:.1%}")
        )
    judged = [move for move in gains if move.realised is not None]
    if judged:
        predicted = [move.predicted for move in judged if move.predicted is not None]
        words = f"realised {fmean(move.realised or 0.0 for move in judged):+.1%} in the mean"
        words += f", predicted {fmean(predicted):+.1%}" if predicted else ""
        of_all = f"{len(judged)} of {len(gains)} series of moves can be judged"
        rows.append(("change of rate by moves in one direction", f"{words}; {of_all}"))
    rows += _sync_rows(used, [event for event in events if event["event"] == "weights"])
    return rows


def _sync_rows(used: Usage, weights: Sequence[Line]) -> list[tuple[str, str]]:
    """What versions of the weights took: on their way, and of the slots' time."""
    published = [event for event in weights if event["slot_id"] is None]
    taken = [event for event in weights if event["slot_id"] is not None]
    if not published or not taken:
        return []
    parts = [
        f"{fmean(event['duration_s'] for event in published):.3g} s to publish a version",
        f"{fmean(event['duration_s'] for event in taken):.3g} s to take it, "
        f"{fmean(event['pause_s'] for event in taken):.3g} s of them the engine stands still",
        f"{used.total_s('syncing') / used.total_s():.2%} of the slots' time" if used.total_s() > 0 else "",
    ]
    return [("weights on their way", "; ".join(filter(None, parts)))]
