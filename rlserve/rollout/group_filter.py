"""Leaving out groups that have nothing to teach: those whose answers all have the same reward.

Against its group no answer of such a group is better or worse, so its advantages are 0. Other prompts take the place of
those that are left out, and a step has as many groups that teach as ever (DAPO, Yu et al. 2025, arXiv 2503.14476,
"dynamic sampling").
"""

from __future__ import annotations

from collections.abc import Sequence

EQUAL_REWARDS = "equal_rewards"
"""Why such a group is dropped."""


class GroupFilter:
    """Leaves out so many groups for one training step at most, so that a run goes on where all groups are alike."""

    def __init__(self, *, max_per_step: int) -> None:
        self._max_per_step = max_per_step
        self._num_steps = 0
        self._num_left_out = 0

    def keeps(self, rewards: Sequence[float], *, num_steps: int) -> bool:
        """Whether to train on a group with these rewards, after ``num_steps`` steps. Counts those that are left out."""
        if num_steps != self._num_steps:
            self._num_steps, self._num_left_out = num_steps, 0
        if min(rewards) < max(rewards) or self._num_left_out == self._max_per_step:
            return True
        self._num_left_out += 1
        return False
