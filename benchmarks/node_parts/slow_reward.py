"""The reward of the built-in task, given late: the run leaves the processors to the node that joins, as it would where
that node is a machine of its own."""

from __future__ import annotations

import time

from rlserve.tasks.addition import reward as addition_reward
from rlserve.tasks.base import Sample

DELAY_S = 0.05


def reward(sample: Sample) -> float:
    """That of an answer, ``DELAY_S`` later."""
    time.sleep(DELAY_S)
    return addition_reward(sample)
