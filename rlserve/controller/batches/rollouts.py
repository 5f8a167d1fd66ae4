"""Batches of prompt groups that were rolled out and scored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from rlserve.controller.batches.base import BatchSource, Taken
from rlserve.controller.context import RunContext
from rlserve.controller.events import GroupsTrained
from rlserve.controller.group_metrics import group_metrics
from rlserve.controller.turns.base import Turns
from rlserve.rollout.batch import build_batch
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.groups import ScoredGroup
from rlserve.tracking.events import TrainedBatch
from rlserve.trainers.batch import Batch


class RolloutBatches(BatchSource):
    """Takes them from the buffer, which has whole batches only."""

    def __init__(self, run: RunContext, *, num_steps: int, turns: Turns, buffer: SampleBuffer[ScoredGroup]) -> None:
        self._run = run
        self._num_steps = num_steps
        self._turns = turns
        self._buffer = buffer
        self._taken: list[ScoredGroup] = []

    async def next(self, stop: asyncio.Event) -> Taken | None:
        groups: list[ScoredGroup] | None = None

        def ready() -> bool:
            nonlocal groups
            num_steps = self._run.counters.num_steps
            if not stop.is_set() and self._turns.is_ripe(self._num_steps - num_steps):
                groups = self._buffer.take(num_steps)
            return groups is not None or stop.is_set()

        if not ready():
            await self._turns.begin_rollout()
            self.waiting = True
            self._run.changed.notify()
            await self._run.changed.wait_for(ready, f"the batch of step {self._run.counters.num_steps + 1}")
            self.waiting = False
        if groups is None:
            return None
        self._taken = groups
        return Taken(num_groups=len(groups), build=partial(build_batch, groups), metrics=group_metrics(groups))

    def note_trained(self, batch: Batch, step: int, metrics: Mapping[str, float]) -> None:
        """The groups count as trained, which makes room for others."""
        self._buffer.commit(time_s=self._run.clock.now())
        self._run.events.emit(trained_batch(step, self._taken))
        self._run.events.emit(GroupsTrained(step=step, groups=self._taken))
        counters = self._run.counters
        staleness = int(counters.num_steps - batch.weight_versions.min())
        counters.max_staleness = max(counters.max_staleness, staleness)
        counters.sum_abs_log_prob_difference += metrics["training/log_prob_diff_mean"]


def trained_batch(step: int, groups: Sequence[ScoredGroup]) -> TrainedBatch:
    """What ``samples.jsonl`` says of a step."""
    return TrainedBatch(
        step=step,
        group_ids=tuple(scored.group.id for scored in groups),
        attempts=tuple(scored.attempt for scored in groups),
        oldest_versions=tuple(scored.oldest_version for scored in groups),
        rewards=tuple(scored.rewards for scored in groups),
    )
