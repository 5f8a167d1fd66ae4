"""Traces of spot machines, as they are published.

``{"metadata": {"gap_seconds": 300}, "data": [16, 16, 11, …]}`` is the form of github.com/skypilot-org/spot-traces: how
many machines there were, every so many seconds. A CSV file has lines ``seconds,machines``, one for each change.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlserve.errors import UserError
from rlserve.simulate.markets.base import Availability


def read_availability(path: Path) -> Availability:
    """From a JSON or a CSV file; the share is that of the most machines that the trace ever has.

    Raises:
        UserError: there is no such file, or it is not of this form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the trace {path} cannot be read: {error.strerror}") from error
    times_s, counts, end_s = _from_csv(path, text) if path.suffix == ".csv" else _from_json(path, text)
    most = max(counts)
    if most <= 0:
        raise UserError(f"the trace {path} never has a machine")
    changes = [index for index in range(len(counts)) if not index or counts[index] != counts[index - 1]]
    return Availability(
        times_s=tuple(times_s[index] for index in changes),
        shares=tuple(counts[index] / most for index in changes),
        duration_s=end_s,
    )


def _from_json(path: Path, text: str) -> tuple[Sequence[float], Sequence[float], float]:
    try:
        content: Any = json.loads(text)
        gap_s, counts = float(content["metadata"]["gap_seconds"]), [float(count) for count in content["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the trace {path} must be JSON with metadata.gap_seconds and data, a list of counts"
        ) from error
    if gap_s <= 0 or not counts or min(counts) < 0:
        raise UserError(f"the trace {path} needs gap_seconds above 0, and counts of at least 0")
    return [gap_s * index for index in range(len(counts))], counts, gap_s * len(counts)


def _from_csv(path: Path, text: str) -> tuple[Sequence[float], Sequence[float], float]:
    try:
        rows = [(float(time_s), float(count)) for time_s, count in csv.reader(text.splitlines())]
    except ValueError as error:
        raise UserError(f"the trace {path} must have lines SECONDS,MACHINES and nothing else") from error
    times_s = [time_s - rows[0][0] for time_s, _ in rows]
    counts = [count for _, count in rows]
    ascending = all(earlier < later for earlier, later in pairwise(times_s))
    if len(rows) < 2 or not ascending or min(counts) < 0:
        raise UserError(f"the trace {path} needs two lines or more, with times that ascend and counts of at least 0")
    return times_s[:-1], counts[:-1], times_s[-1]
