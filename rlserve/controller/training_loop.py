"""Batches in, versions of the weights out: the loop on the training side.

::

    buffer.take ──► trainers.step ──► transport.publish ──► replicas.broadcast (in the background)
         ▲                                  │
         │ unblocked by a scored group      └──► ledger: trained ──► admission has room again

A step that a lost trainer breaks off is done again by the survivors inside ``trainers.step``. Groups count as
trained only after their step, so a stop in mid-step loses nothing and trains nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlserve.controller.context import RunContext
from rlserve.controller.events import GroupsTrained
from rlserve.controller.group_metrics import group_metrics
from rlserve.controller.replicas import Replicas
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import NonFiniteLossError
from rlserve.rollout.batch import build_batch
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.groups import ScoredGroup
from rlserve.tracking.events import TrainedBatch, WeightEvent
from rlserve.trainers.batch import Batch
from rlserve.weights.base import Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one training step gave."""

    step: int
    metrics: Mapping[str, float]


class TrainingLoop:
    """Steps the trainers until the run has its steps, or a stop is asked for."""

    def __init__(
        self,
        run: RunContext,
        *,
        num_steps: int,
        trainers: TrainerGroup,
        transport: Transport,
        replicas: Replicas,
        buffer: SampleBuffer,
        folder: Path,
    ) -> None:
        """``folder`` keeps the batch of a step that failed."""
        self._run = run
        self._num_steps = num_steps
        self._trainers = trainers
        self._transport = transport
        self._replicas = replicas
        self._buffer = buffer
        self._folder = folder
        self._broadcasts: set[asyncio.Task[None]] = set()
        self._swap_s = 0.0
        self.waiting = False
        """For a batch."""

    async def step(self, stop: asyncio.Event) -> StepReport | None:
        """Do the next step; None where the run has all its steps, or ``stop`` came first."""
        if self._run.counters.num_steps >= self._num_steps:
            return None
        start = self._run.clock.now()
        groups = await self._next_batch(stop)
        if groups is None:
            return None
        return await self._train(groups, start_s=start, wait_s=self._run.clock.now() - start)

    async def settle(self) -> None:
        """Wait until every broadcast is done."""
        await asyncio.gather(*self._broadcasts)

    async def publish_first(self, version: int) -> None:
        """Publish the weights that the run begins with."""
        await self._trainers.publish(self._transport, version)

    async def _next_batch(self, stop: asyncio.Event) -> list[ScoredGroup] | None:
        taken: list[ScoredGroup] | None = None

        def ready() -> bool:
            nonlocal taken
            if not stop.is_set():
                taken = self._buffer.take(self._run.counters.num_steps)
            return taken is not None or stop.is_set()

        self.waiting = True
        await self._run.changed.wait_for(ready, f"the batch of step {self._run.counters.num_steps + 1}")
        self.waiting = False
        return taken

    async def _train(self, groups: list[ScoredGroup], *, start_s: float, wait_s: float) -> StepReport:
        batch, step = await asyncio.to_thread(build_batch, groups), self._run.counters.num_steps + 1
        train_start = self._run.clock.now()
        try:
            metrics = await self._trainers.step(batch)
        except NonFiniteLossError as error:
            saved = _save_batch(self._folder / f"failed_batch_step_{step}.npz", batch)
            raise NonFiniteLossError(f"{error}; its batch is in {saved}") from error
        update_s = self._run.clock.now() - train_start
        publish_start = self._run.clock.now()
        await self._trainers.publish(self._transport, step)
        publish_s = self._run.clock.now() - publish_start
        self._run.events.emit(
            WeightEvent(time_s=self._run.clock.now(), version=step, slot_id=None, duration_s=publish_s)
        )
        self._buffer.commit(time_s=self._run.clock.now())
        self._run.events.emit(trained_batch(step, groups))
        self._run.events.emit(GroupsTrained(step=step, groups=groups))
        self._count(batch, metrics)
        self._broadcast()
        self._run.changed.notify()
        step_s = self._run.clock.now() - start_s
        num_tokens = len(batch.token_ids)
        return StepReport(
            step=step,
            metrics={
                **metrics,
                **group_metrics(groups),
                "training/global_step": step,
                "training/time_s": self._run.clock.now(),
                "timing_s/step": step_s,
                "timing_s/wait": wait_s,
                "timing_s/update_actor": update_s,
                "perf/throughput": num_tokens / step_s,
                "perf/total_num_tokens": num_tokens,
                "weights/version": step,
                "weights/publish_s": publish_s,
                "weights/swap_s": self._swap_s,
            },
        )

    def _count(self, batch: Batch, metrics: Mapping[str, float]) -> None:
        counters = self._run.counters
        staleness = int(counters.num_steps - batch.weight_versions.min())
        counters.num_steps += 1
        counters.num_trained_tokens += len(batch.token_ids)
        counters.max_staleness = max(counters.max_staleness, staleness)
        counters.sum_abs_log_prob_difference += metrics["training/log_prob_diff_mean"]
        if counters.seconds_to_first_step is None:
            counters.seconds_to_first_step = self._run.clock.now()

    def _broadcast(self) -> None:
        async def deliver() -> None:
            self._swap_s = await self._replicas.broadcast()

        task = self._run.tasks.create_task(deliver())
        self._broadcasts.add(task)
        task.add_done_callback(self._broadcasts.discard)


def trained_batch(step: int, groups: Sequence[ScoredGroup]) -> TrainedBatch:
    """What ``samples.jsonl`` says of a step."""
    return TrainedBatch(
        step=step,
        group_ids=tuple(scored.group.id for scored in groups),
        attempts=tuple(scored.attempt for scored in groups),
        oldest_versions=tuple(scored.oldest_version for scored in groups),
        rewards=tuple(scored.rewards for scored in groups),
    )


def _save_batch(path: Path, batch: Batch) -> Path:
    np.savez(
        path,
        sample_ids=np.array(batch.sample_ids),
        group_ids=np.array(batch.group_ids),
        prompt_lengths=batch.prompt_lengths,
        response_lengths=batch.response_lengths,
        token_ids=batch.token_ids,
        loss_mask=batch.loss_mask,
        log_probs=batch.log_probs,
        behaviour_log_probs=batch.behaviour_log_probs,
        weight_versions=batch.weight_versions,
        rewards=batch.rewards,
        finish_reasons=np.array(batch.finish_reasons),
    )
    return path
