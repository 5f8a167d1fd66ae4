"""What a run learns from and is scored on, put together by whoever knows where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.controller.batches.base import BatchSource
from rlserve.controller.evaluator import Evaluator
from rlserve.controller.ports import Front
from rlserve.controller.rollout_loop import RolloutLoop


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSide:
    """The other side of the training loop."""

    batches: BatchSource
    evaluation: Evaluator
    rollouts: RolloutLoop | None = None
    """None where nothing is generated."""
    front: Front | None = None
    """None where there are no clients."""
