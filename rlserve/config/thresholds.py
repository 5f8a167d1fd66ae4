"""Thresholds of the queue-length rule, held against what the admission lets in. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rlserve.errors import Problem
from rlserve.manager.config import ManagerConfig, QueueThresholdConfig
from rlserve.rollout.config import RolloutConfig

_HIGH_SHARE, _LOW_SHARE = 0.25, 0.1
"""Of the prompt groups that may be live."""


def suggested_thresholds(max_live_groups: int) -> tuple[int, int]:
    """A high and a low threshold that a queue passes under an admission."""
    low = max(1, round(_LOW_SHARE * max_live_groups))
    return max(low + 1, round(_HIGH_SHARE * max_live_groups)), low


def check_thresholds(manager: ManagerConfig, rollout: RolloutConfig) -> Iterator[Problem]:
    """Problems of thresholds that no queue can ever pass."""
    if not isinstance(manager, QueueThresholdConfig):
        return
    num_live = (rollout.max_staleness + 1) * rollout.prompts_per_step
    high, low = suggested_thresholds(num_live)
    if manager.queue_high >= num_live:
        yield Problem(
            "manager.queue_high",
            f"the queue is never longer than the {num_live} prompt groups that may be live ((rollout.max_staleness "
            f"{rollout.max_staleness} + 1) x rollout.prompts_per_step {rollout.prompts_per_step}), so above "
            f"{manager.queue_high} it never is and no slot would ever go to rollout: set it below {num_live}, as "
            f"manager.queue_high={high} manager.queue_low={low}, or take manager=rate_matching",
        )
    if manager.queue_low == 0:
        yield Problem(
            "manager.queue_low",
            f"no queue is below 0, so no slot would ever go back to training: set it above 0, as "
            f"manager.queue_low={low}, or take manager=rate_matching",
        )
