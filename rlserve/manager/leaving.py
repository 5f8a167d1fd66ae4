"""When a gang that is called to training stops generating, and how long the trainers wait for it. Pure.

::

    trainers   ├──────────── step ──────────────────┤ group forms anew ├── next step
    the gang   ── generates ──────────┤ leaves      ┤ joins
                                      └── the forecast end of the step, less what leaving takes

Too early, and the gang does nothing until the step ends; too late, and all trainers wait for it, or it has to wait for
the end of another step. Both are counted in seconds of one gang.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.manager.measurement.figures import Measurements

_LEAVE_S = 1.0
"""What leaving takes, before it was measured."""


@dataclass(frozen=True, kw_only=True)
class TrainersNow:
    """What the trainers are doing."""

    types: tuple[str, ...]
    """Of their gangs, one for each."""
    num_tokens: int | None
    """Of the batch under way, or else of the last; None before the first."""
    step_begin_s: float | None
    """Of the step under way; None between two steps."""
    waiting: bool
    """For a batch."""


def leave_at_s(trainers: TrainersNow, measured: Measurements) -> float | None:
    """When a gang that is called to training has to leave rollout; any time that has passed means now. None: not before
    the trainers do something else."""
    step_s = forecast_step_s(trainers, measured)
    if trainers.waiting or step_s is None:
        return float("-inf")
    leave_s = expected_leave_s(measured)
    if trainers.step_begin_s is None:
        return float("-inf") if patience_s(trainers, measured, left_s=leave_s) else None
    return trainers.step_begin_s + step_s - leave_s


def patience_s(trainers: TrainersNow, measured: Measurements, *, left_s: float) -> float:
    """How long the trainers wait between two steps for a gang that is leaving rollout, and should need ``left_s`` more.

    Without it the gang does nothing during the next step. That is what waiting may cost all trainers together: nothing,
    where it should cost more; and where it turns out to, they go on without the gang.
    """
    step_s = forecast_step_s(trainers, measured)
    longest_s = 0.0 if step_s is None else step_s / max(len(trainers.types), 1)
    return longest_s if left_s <= longest_s else 0.0


def forecast_step_s(trainers: TrainersNow, measured: Measurements) -> float | None:
    """How long the trainers compute on a batch at least, by the quickest of recent steps; None before any was measured.

    At least, because to be late costs as many gangs as train, and to be early a single one. A number of gangs that was
    not measured is in proportion to the nearest one, the newest of several.
    """
    num_gangs = len(trainers.types)
    if trainers.num_tokens is None or not measured.train or not num_gangs:
        return None
    same = [rate for rate in measured.train if rate.types == tuple(sorted(trainers.types))]
    rate = (same or sorted(measured.train, key=lambda each: (abs(len(each.types) - num_gangs), -each.last_s)))[0]
    mean_tokens = rate.step_s * rate.tokens_per_s
    step_s = rate.step_s + rate.token_s * (trainers.num_tokens - mean_tokens) - rate.early_s
    return max(0.0, step_s) * len(rate.types) / num_gangs


def expected_leave_s(measured: Measurements) -> float:
    """How long a gang takes to leave rollout."""
    return _LEAVE_S if measured.leave_s is None else measured.leave_s
