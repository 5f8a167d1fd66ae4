"""What comes to a server: requests with their arrival, from a file or drawn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlserve.errors import UserError
from rlserve.rollout.workload.courses import Course


@dataclass(frozen=True, kw_only=True)
class ServedRequest:
    """One request of one answer."""

    arrival_s: float
    num_prompt_tokens: int
    num_answer_tokens: int


def draw_requests(
    rate: Course, duration_s: float, *, num_prompt_tokens: int, num_answer_tokens: float, seed: int
) -> list[ServedRequest]:
    """A Poisson process whose rate follows a course.

    Args:
        rate: requests a second.
        num_answer_tokens: of an answer in the mean; lengths are exponential, one token at least.
    """
    chance, found = random.Random(seed), list[ServedRequest]()
    most = max(rate.at(step / 1000) for step in range(1001))
    now_s = chance.expovariate(most) if most > 0 else duration_s
    while now_s < duration_s:
        if chance.random() * most < rate.at(now_s / duration_s):  # thinned to the rate of now
            length = max(1, round(chance.expovariate(1 / num_answer_tokens)))
            found.append(ServedRequest(arrival_s=now_s, num_prompt_tokens=num_prompt_tokens, num_answer_tokens=length))
        now_s += chance.expovariate(most)
    return found


def read_requests(path: Path) -> list[ServedRequest]:
    """Those of a recorded trace, as ``rlserve bench`` takes it: a JSON object a line with ``timestamp`` in
    milliseconds, ``input_length`` and ``output_length``. The first arrives at 0.

    Raises:
        UserError: the file cannot be read, or a line is not such an object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    rows = sorted(_rows(path, lines), key=lambda row: row.arrival_s)
    if not rows:
        raise UserError(f"{path} has no requests")
    first_s = rows[0].arrival_s
    return [
        ServedRequest(
            arrival_s=row.arrival_s - first_s,
            num_prompt_tokens=row.num_prompt_tokens,
            num_answer_tokens=row.num_answer_tokens,
        )
        for row in rows
    ]


def _rows(path: Path, lines: Sequence[str]) -> Iterator[ServedRequest]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            arrival_s = float(row["timestamp"]) / 1000
            lengths = int(row["input_length"]), int(row["output_length"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}: timestamp, input_length and output_length are wanted, as numbers"
            ) from error
        if min(lengths) < 1:
            raise UserError(f"{path}, line {number}: input_length and output_length must be at least 1")
        yield ServedRequest(arrival_s=arrival_s, num_prompt_tokens=lengths[0], num_answer_tokens=lengths[1])
