"""Goodput: requests a second that met every deadline (DistServe, arXiv 2401.09670), spelled as vLLM spells it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlserve.bench.results.record import RequestRecord
from rlserve.errors import UserError

DEADLINES: Mapping[str, str] = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "e2el": "end-to-end latency",
}
"""Names of deadlines, in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """How many requests were good enough."""

    deadlines_ms: Mapping[str, float]
    num_good: int
    share: float
    """Of all requests, those that failed included."""
    requests_per_s: float
    num_late: Mapping[str, int]
    """By deadline, the answered requests that missed it."""


def parse_deadlines(texts: Sequence[str]) -> dict[str, float]:
    """``ttft:200 tpot:20 e2el:5000``, in milliseconds.

    Raises:
        UserError: a name is unknown, stands twice, or its number is not above 0.
    """
    deadlines: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in DEADLINES or name in deadlines or not 0 < value < math.inf:
            known = ", ".join(f"{name} ({what})" for name, what in DEADLINES.items())
            raise UserError(f"--goodput {text!r} is no deadline: write NAME:MILLISECONDS once for any of {known}")
        deadlines[name] = value
    return deadlines


def is_late(record: RequestRecord, name: str, deadline_ms: float) -> bool:
    """Whether an answered request missed a deadline. Where it has no such time, as TPOT of one token, it did not."""
    times_s = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.latency_s}
    time_s = times_s[name]
    return time_s is not None and 1000 * time_s > deadline_ms


def goodput(records: Sequence[RequestRecord], deadlines_ms: Mapping[str, float], duration_s: float) -> Goodput:
    """Of a run of ``duration_s``."""
    answered = [record for record in records if record.failure is None]
    late = {name: {id(r) for r in answered if is_late(r, name, limit)} for name, limit in deadlines_ms.items()}
    num_good = len(answered) - len(set[int]().union(*late.values()))
    return Goodput(
        deadlines_ms=deadlines_ms,
        num_good=num_good,
        share=num_good / len(records) if records else 0.0,
        requests_per_s=num_good / duration_s if duration_s > 0 else 0.0,
        num_late={name: len(missed) for name, missed in late.items()},
    )
