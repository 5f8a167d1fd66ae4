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
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlserve.controller.counters import Counters, RunClock
from rlserve.controller.group_metrics import group_metrics
from rlserve.controller.replicas import Replicas
from rlserve.controller.signal import Signal
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.errors import NonFiniteLossError
from rlserve.rollout.batch import build_batch
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.groups import ScoredGroup
from rlserve.tracking.events import TrainedBatch, WeightEvent
from rlserve.tracking.tracker import Tracker
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
        *,
        num_steps: int,
        trainers: TrainerGroup,
        transport: Transport,
        replicas: Replicas,
        buffer: SampleBuffer,
        counters: Counters,
        clock: RunClock,
        tracker: Tracker,
        changed: Signal,
        folder: Path,
        rollout_metrics: Callable[[], Mapping[str, float]],
        on_trained: Callable[[int, Sequence[ScoredGroup]], None],
        after_step: Callable[[StepReport], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """``on_trained`` is told of each step and the groups that it was done on. ``spawn`` runs a task whose failure
        stops the run."""
        self._num_steps = num_steps
        self._trainers = trainers
        self._transport = transport
        self._replicas = replicas
        self._buffer = buffer
        self._counters = counters
        self._clock = clock
        self._tracker = tracker
        self._changed = changed
        self._folder = folder
        self._rollout_metrics = rollout_metrics
        self._on_trained = on_trained
        self._after_step = after_step
        self._spawn = spawn
        self._broadcasts: set[asyncio.Task[None]] = set()
        self._swap_s = 0.0
        self.waiting = False

    async def run(self, stop: asyncio.Event) -> None:
        """Train until ``num_steps`` or ``stop``; returns with every broadcast done."""
        while self._counters.num_steps < self._num_steps:
            start = self._clock.now()
            groups = await self._next_batch(stop)
            if groups is None:
                break
            await self._train(groups, start_s=start, wait_s=self._clock.now() - start)
        await asyncio.gather(*self._broadcasts)

    async def publish_first(self, version: int) -> None:
        """Publish the weights that the run begins with."""
        await self._trainers.publish(self._transport, version)

    async def _next_batch(self, stop: asyncio.Event) -> list[ScoredGroup] | None:
        taken: list[ScoredGroup] | None = None

        def ready() -> bool:
            nonlocal taken
            if not stop.is_set():
                taken = self._buffer.take(self._counters.num_steps)
            return taken is not None or stop.is_set()

        self.waiting = True
        await self._changed.wait_for(ready, f"the batch of step {self._counters.num_steps + 1}")
        self.waiting = False
        return taken

    async def _train(self, groups: list[ScoredGroup], *, start_s: float, wait_s: float) -> None:
        batch, step = await asyncio.to_thread(build_batch, groups), self._counters.num_steps + 1
        train_start = self._clock.now()
        try:
            metrics = await self._trainers.step(batch)
        except NonFiniteLossError as error:
            saved = _save_batch(self._folder / f"failed_batch_step_{step}.npz", batch)
            raise NonFiniteLossError(f"{error}; its batch is in {saved}") from error
        update_s = self._clock.now() - train_start
        publish_start = self._clock.now()
        await self._trainers.publish(self._transport, step)
        publish_s = self._clock.now() - publish_start
        self._tracker.record(WeightEvent(time_s=self._clock.now(), version=step, slot_id=None, duration_s=publish_s))
        self._buffer.commit(time_s=self._clock.now())
        self._tracker.record(trained_batch(step, groups))
        self._on_trained(step, groups)
        self._count(batch, metrics)
        self._broadcast()
        self._changed.notify()
        step_s = self._clock.now() - start_s
        num_tokens = len(batch.token_ids)
        await self._after_step(
            StepReport(
                step=step,
                metrics={
                    **metrics,
                    **group_metrics(groups),
                    **self._rollout_metrics(),
                    "training/global_step": step,
                    "training/time_s": self._clock.now(),
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
        )

    def _count(self, batch: Batch, metrics: Mapping[str, float]) -> None:
        counters = self._counters
        staleness = int(counters.num_steps - batch.weight_versions.min())
        counters.num_steps += 1
        counters.num_trained_tokens += len(batch.token_ids)
        counters.max_staleness = max(counters.max_staleness, staleness)
        counters.sum_abs_log_prob_difference += metrics["training/log_prob_diff_mean"]
        if counters.seconds_to_first_step is None:
            counters.seconds_to_first_step = self._clock.now()

    def _broadcast(self) -> None:
        async def deliver() -> None:
            self._swap_s = await self._replicas.broadcast()

        task = self._spawn(deliver())
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
        group_index=batch.group_index,
        prompt_lengths=batch.prompt_lengths,
        response_lengths=batch.response_lengths,
        token_ids=batch.token_ids,
        log_probs=batch.log_probs,
        behaviour_log_probs=batch.behaviour_log_probs,
        weight_versions=batch.weight_versions,
        rewards=batch.rewards,
    )
    return path
