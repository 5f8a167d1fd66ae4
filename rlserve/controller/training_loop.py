"""Batches in, versions of the weights out: the loop on the training side.

::

    batches.next ──► trainers.step, copy of the weights ──► on to the replicas (in the background)
         ▲                                        │
         │ unblocked by a scored group            └──► batches.note_trained: room for other groups

A step that a lost trainer breaks off is done again by the survivors inside ``trainers.step``. Groups count as
trained only after their step, so a stop in mid-step loses nothing and trains nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rlserve.controller.batches.base import BatchSource, Taken
from rlserve.controller.context import RunContext
from rlserve.controller.events import StepEnded
from rlserve.controller.failed_batch import keep_batch
from rlserve.controller.group_copies import GroupStep, MemberCopy
from rlserve.controller.resizes import resize_metrics
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.turns.base import Turns
from rlserve.controller.weight_source import WeightSource
from rlserve.errors import NonFiniteLossError
from rlserve.tracking.events import StepEvent
from rlserve.trainers.batch import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one training step gave."""

    step: int
    metrics: Mapping[str, float]
    copies: tuple[MemberCopy, ...]
    """What the trainers copied of their weights, and of their state where that was asked for."""


@dataclass(frozen=True, kw_only=True)
class _Waits:
    """How long a step waited before it could begin."""

    batch_s: float
    weights_s: float
    """The part of it in which a version of the weights was on its way to the replicas."""


class TrainingLoop:
    """Steps the trainers until the run has its steps, or a stop is asked for."""

    def __init__(
        self,
        run: RunContext,
        *,
        num_steps: int,
        turns: Turns,
        trainers: TrainerGroup,
        weights: WeightSource,
        batches: BatchSource,
        folder: Path,
    ) -> None:
        """``folder`` keeps the batch of a step that failed."""
        self._run = run
        self._num_steps = num_steps
        self._turns = turns
        self._trainers = trainers
        self._weights = weights
        self._batches = batches
        self._folder = folder

    @property
    def waiting(self) -> bool:
        """For a batch."""
        return self._batches.waiting

    async def step(self, stop: asyncio.Event, *, copies_state: bool = False) -> StepReport | None:
        """Do the next step; None where the run has all its steps, or ``stop`` came first. With ``copies_state``, let
        the trainers copy then what they write of a checkpoint."""
        if self._run.counters.num_steps >= self._num_steps:
            return None
        start, weights_before_s = self._run.clock.now(), self._weights.busy_s
        taken = await self._batches.next(stop)
        if taken is None:
            return None
        waits = _Waits(batch_s=self._run.clock.now() - start, weights_s=self._weights.busy_s - weights_before_s)
        await self._turns.begin_training()
        return await self._train(taken, start_s=start, waits=waits, copies_state=copies_state)

    async def _train(self, taken: Taken, *, start_s: float, waits: _Waits, copies_state: bool) -> StepReport:
        batch, step = await asyncio.to_thread(taken.build), self._run.counters.num_steps + 1
        train_start, change_before_s = self._run.clock.now(), self._trainers.pause_s
        done = await self._stepped(batch, step, copies_state=copies_state)
        slot_ids, change_wait_s = self._trainers.members, self._trainers.pause_s - change_before_s
        work_end_s = self._run.clock.now() - done.copy_s
        await self._weights.publish(step, done.copies)
        self._batches.note_trained(batch, step, done.metrics)
        num_tokens = len(batch.token_ids)
        self._run.events.emit(
            StepEnded(
                slot_ids=slot_ids,
                num_groups=taken.num_groups,
                num_tokens=num_tokens,
                wait_s=waits.batch_s - waits.weights_s,
                weights_s=self._weights.snapshot_s + waits.weights_s,
                work_s=done.work_s,
            )
        )
        self._run.events.emit(
            StepEvent(
                time_s=self._run.clock.now(),
                step=step,
                begin_s=start_s,
                work_begin_s=work_end_s - done.work_s,
                work_end_s=work_end_s,
                slot_ids=slot_ids,
                num_groups=taken.num_groups,
                num_tokens=num_tokens,
                weights_wait_s=waits.weights_s,
                change_wait_s=change_wait_s,
                broken_s=done.broken_s,
                state_copy_s=done.state_copy_s,
            )
        )
        self._count(batch)
        self._run.changed.notify()
        step_s = self._run.clock.now() - start_s
        return StepReport(
            step=step,
            copies=done.copies,
            metrics={
                **done.metrics,
                **taken.metrics,
                **self._weights.metrics(),
                **self._turns.metrics(),
                **resize_metrics(self._trainers.take_resizes()),
                "training/global_step": step,
                "training/time_s": self._run.clock.now(),
                "timing_s/step": step_s,
                "timing_s/wait": waits.batch_s,
                "timing_s/weights": self._weights.snapshot_s + waits.weights_s,
                "timing_s/update_actor": work_end_s - train_start,
                "perf/throughput": num_tokens / step_s,
                "perf/total_num_tokens": num_tokens,
            },
        )

    async def _stepped(self, batch: Batch, step: int, *, copies_state: bool) -> GroupStep:
        """Let the trainers step; keeps the batch where that is not finite."""
        try:
            return await self._trainers.step(batch, replace(self._weights.copies(step), state=copies_state))
        except NonFiniteLossError as error:
            where = keep_batch(self._folder / f"failed_batch_step_{step}.npz", batch)
            raise NonFiniteLossError(f"{error}; its batch {where}") from error

    def _count(self, batch: Batch) -> None:
        counters = self._run.counters
        counters.num_steps += 1
        counters.num_trained_tokens += len(batch.token_ids)
        if counters.seconds_to_first_step is None:
            counters.seconds_to_first_step = self._run.clock.now()
