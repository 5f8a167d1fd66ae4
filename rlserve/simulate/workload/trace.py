"""Lengths from a file: one line of JSON for each prompt group, in order; after the last comes the first again.

A line is a list of response lengths, or ``{"lengths": [...], "num_prompt_tokens": 300, "kept": true}``; the latter two
may be left out.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rlserve.errors import DataError
from rlserve.simulate.workload.base import GroupWork, Workload
from rlserve.simulate.workload.schedules import Schedule

_DEFAULT_PROMPT_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class TraceWorkload(Workload):
    """Groups as they were. A seed shuffles them, but for 0, which keeps their order."""

    groups: tuple[GroupWork, ...]
    order: tuple[int, ...]
    kept: Schedule
    """For groups of which the trace does not say it."""
    says_kept: bool

    def group(self, position: int, share: float) -> GroupWork:
        """The next of the file."""
        return self.groups[self.order[position % len(self.order)]]

    def kept_share(self, share: float) -> float:
        """By the schedule, or half where the file says which: those that it keeps lie below."""
        return 0.5 if self.says_kept else self.kept.at(share)

    def mean_kept_share(self, share: float) -> float:
        """Of the file, or by the schedule."""
        return fmean(work.kept_up_to < 0.5 for work in self.groups) if self.says_kept else self.kept.at(share)

    def mean_length(self, share: float) -> float:
        """Of the file."""
        return fmean(length for work in self.groups for length in work.lengths)

    def seeded(self, seed: int) -> TraceWorkload:
        """The same groups in an order of its own."""
        order, rng = list(range(len(self.groups))), random.Random(seed)
        if seed:
            rng.shuffle(order)
        if self.says_kept:
            return replace(self, order=tuple(order))
        groups = tuple(replace(work, kept_up_to=rng.random()) for work in self.groups)
        return replace(self, order=tuple(order), groups=groups)


def read_trace(path: Path, *, kept: Schedule, samples_per_prompt: int, max_tokens: int) -> TraceWorkload:
    """Read a trace file.

    Raises:
        DataError: it cannot be read, a line is damaged, or has another number of samples than the run.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    groups, num_said = [], 0
    for number, line in enumerate(lines, start=1):
        if line.strip():
            work, says_kept = _group(_parsed(line, f"{path}:{number}"), f"{path}:{number}", max_tokens)
            if len(work.lengths) != samples_per_prompt:
                raise DataError(
                    f"{path}:{number}: {len(work.lengths)} lengths, but rollout.samples_per_prompt={samples_per_prompt}"
                )
            groups.append(work)
            num_said += says_kept
    if not groups:
        raise DataError(f"{path}: no prompt group is in it")
    if num_said not in (0, len(groups)):
        raise DataError(f"{path}: `kept` is said of {num_said} of {len(groups)} groups; say it of all or of none")
    return TraceWorkload(groups=tuple(groups), order=tuple(range(len(groups))), kept=kept, says_kept=num_said > 0)


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON: {error.msg}") from error
    found = {"lengths": value} if isinstance(value, list) else value
    if not isinstance(found, dict) or not isinstance(found.get("lengths"), list):
        raise DataError(f"{where}: must be a list of lengths, or have one under `lengths`")
    return found


def _group(found: dict[str, Any], where: str, max_tokens: int) -> tuple[GroupWork, bool]:
    lengths = found["lengths"]
    if not lengths or not all(type(length) is int and length >= 1 for length in lengths):
        raise DataError(f"{where}: lengths must be whole numbers, at least 1")
    num_prompt_tokens = found.get("num_prompt_tokens", _DEFAULT_PROMPT_TOKENS)
    if type(num_prompt_tokens) is not int or num_prompt_tokens < 1:
        raise DataError(f"{where}: num_prompt_tokens must be a whole number, at least 1")
    kept = found.get("kept")
    if kept is not None and type(kept) is not bool:
        raise DataError(f"{where}: kept must be true or false")
    work = GroupWork(
        num_prompt_tokens=num_prompt_tokens,
        lengths=tuple(min(length, max_tokens) for length in lengths),
        kept_up_to=0.0 if kept or kept is None else 1.0,
    )
    return work, kept is not None
