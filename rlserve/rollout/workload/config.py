"""Configuration of the load. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """The load of a run on paced slots: only there. Everything follows from the run's seed."""

    median_tokens: float | None = None
    """Draw the length of each answer, in tokens of the modelled model, from a log-normal with this median, cut at
    ``rollout.max_tokens``; end tokens are passed over. None leaves lengths to the small model."""
    sigma: float = 1.0
    """Standard deviation of the logarithm of lengths. Half of the variance is common to a prompt group."""
    trace: str | None = None
    """Take the lengths from a file in place of that: one number of tokens a line, or one prompt group
    (``[812, 930, …]``), in order and from the start again; with a seed other than 0 in an order of its own."""
    kept_share: float = 1.0
    """Share of the prompt groups that may be trained on, at the start; others are dropped, as by a filter of groups
    whose answers all have the same reward."""
    kept_share_end: float | None = None
    """The same at the end of the run; None: as at the start."""
    kept_course: Literal["linear", "square"] = "linear"
    """How it gets there, over the steps of the run: evenly, or changing to and fro."""
    num_phases: int = 6
    """Of a square course: the first has the share of the start, the second that of the end, and so on."""
    tool_share: float = 0.0
    """Share of the prompt groups whose answers wait for a tool before they are scored, and hold no step meanwhile."""
    tool_wait_s: float = 10.0
    """Median of that wait, which is log-normal like the lengths, in seconds of the run."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "median_tokens": self.median_tokens is None or self.median_tokens > 0 or "must be above 0",
                "sigma": self.sigma >= 0 or "must be at least 0",
                "trace": self.trace is None
                or self.median_tokens is None
                or "cannot stand beside median_tokens: set one of the two to null",
                "kept_share": 0 < self.kept_share <= 1 or "must be in (0, 1]",
                "kept_share_end": self.kept_share_end is None or 0 < self.kept_share_end <= 1 or "must be in (0, 1]",
                "num_phases": self.num_phases >= 1 or "must be at least 1",
                "tool_share": 0 <= self.tool_share <= 1 or "must be between 0 and 1",
                "tool_wait_s": self.tool_wait_s > 0 or "must be above 0",
            },
        )
