"""The controller of a run: four loops joined by a buffer and a queue, in one process.

::

      prompts                rollouts                     training                 reallocation
    ┌──────────┐  router   ┌───────────┐   buffer   ┌──────────────────┐       ┌──────────────────┐
    │ admit    │──queue───►│ replicas  │───────────►│ take a batch     │       │ observe          │
    │ while    │           │  │        │            │ step the trainers│       │ decide (pure)    │
    │ the      │           │  ▼        │            │ snapshot weights ┼──┐    │ act: move slots  │
    │ ledger   │           │ score     │            │ commit, log, save│  │    │ replace the lost │
    │ has room │           └───────────┘            └──────────────────┘  │    └──────────────────┘
    └──────────┘                 ▲      broadcast at a step boundary      │
         ▲                       └────────────────────────────────────────┤
         └───── room again after a step, or when a group is dropped ──────┘

Who unblocks whom: *prompts* waits for room in the ledger, which a finished step (or a dropped group) makes;
*rollouts* wait for admitted groups and for replicas, which *reallocation* and failures add and remove; *training*
waits for a full batch in the buffer, which *rollouts* fill; *reallocation* waits for its interval and for step
boundaries, which *training* gives between two steps. There is no cycle without progress: the ledger admits
``(max_staleness + 1)`` batches, so a batch can always be completed while one replica lives, and a lost worker is
always replaced or the run ends with an error.

Every loop is a task of one task group: an error in any of them stops the run and is reported as itself. A stop
(Ctrl-C, SIGTERM) lets the step under way finish and then saves a checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

from rlserve.controller.context import Books, RunContext
from rlserve.controller.cost_keeper import CostKeeper
from rlserve.controller.display import RunDisplay
from rlserve.controller.evaluator import Evaluator
from rlserve.controller.events import GangsRunOut
from rlserve.controller.hand_moves import HandMoves
from rlserve.controller.heartbeat import Heartbeat
from rlserve.controller.host_watch import HostWatch
from rlserve.controller.live_reporter import LiveReporter
from rlserve.controller.node_watch import NodeWatch
from rlserve.controller.notice_watch import NoticeWatch
from rlserve.controller.observation import PoolMetrics
from rlserve.controller.ports import Front, Ports
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.recovery import Recovery
from rlserve.controller.replicas import Replicas
from rlserve.controller.rollout_loop import RolloutLoop
from rlserve.controller.saving import RunSaver
from rlserve.controller.scale_out import ScaleOut
from rlserve.controller.setup import RunSetup, worker_spec
from rlserve.controller.stall import StallGuard
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.training_loop import TrainingLoop
from rlserve.controller.turns.base import Turns
from rlserve.controller.weight_source import WeightSource
from rlserve.errors import CheckpointError, WorkerLostError
from rlserve.manager.roles import Role
from rlserve.remote import answer
from rlserve.tracking import names
from rlserve.tracking.events import BudgetEvent, Stage, StageEvent
from rlserve.tracking.summary import RunSummary

logger = logging.getLogger(__name__)

_SCORING = "scoring held-out data"


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a controller runs, made by ``rlserve.controller.build``."""

    books: Books
    costs: CostKeeper
    trainers: TrainerGroup
    weights: WeightSource
    replicas: Replicas
    rollouts: RolloutLoop | None
    """None where the run learns from a data set."""
    training: TrainingLoop
    turns: Turns
    reallocation: Reallocation
    recovery: Recovery
    hand_moves: HandMoves
    notice_watch: NoticeWatch
    node_watch: NodeWatch | None
    """None where the slots stay as they are."""
    scale_out: ScaleOut | None
    """None where the run does not grow."""
    host_watch: HostWatch | None
    """None where no processors are shared by slots, or cannot be looked at."""
    evaluation: Evaluator
    front: Front | None
    """None where there are no clients."""
    heartbeat: Heartbeat
    stall_guard: StallGuard
    display: RunDisplay
    live: LiveReporter
    metrics: PoolMetrics
    saver: RunSaver


class Controller:
    """Runs everything from the first worker's start to the last checkpoint."""

    def __init__(self, run: RunContext, setup: RunSetup, ports: Ports, parts: Parts) -> None:
        self._run = run
        self._setup = setup
        self._config = setup.config
        self._ports = ports
        self._parts = parts
        self._stop = asyncio.Event()
        run.events.subscribe(GangsRunOut, lambda _: self.request_stop())
        run.events.subscribe(BudgetEvent, self._note_budget)
        self._held_out_after: float | None = None
        self._is_scored = False
        """Whether the score after all steps is taken: the last that a run does."""

    def request_stop(self) -> None:
        """Finish the step under way, save, and return from ``run``."""
        self._stop.set()
        self._parts.display.stopping = True
        self._run.changed.notify()

    def _note_budget(self, event: BudgetEvent) -> None:
        if event.stops:
            self.request_stop()

    @property
    def stopped_early(self) -> bool:
        """Whether the run was asked to stop and has something left to do: steps, or the score after them."""
        return self._stop.is_set() and not self._is_scored

    def summary(self) -> RunSummary:
        """The numbers that the run comes down to."""
        held_out_after = self._held_out_after
        costs = self._parts.costs.summary(held_out_after=held_out_after)
        return replace(self._parts.saver.summary(held_out_after=held_out_after), cost=costs.to_dict())

    async def run(self) -> None:
        """The whole run.

        Raises:
            RlserveError: what went wrong, as itself; worker processes are ended in any case.
        """
        parts = self._parts
        try:
            async with self._run.tasks as tasks:
                beside = [
                    tasks.create_task(loop) for loop in (parts.display.run(), parts.live.run(), parts.heartbeat.run())
                ]
                if parts.front is not None:
                    beside.append(tasks.create_task(parts.front.run()))
                if await self._unless_stopped(tasks.create_task(self._start())):
                    await self._loops()
                    await self._finish()
                if parts.front is not None:
                    parts.display.status = "letting the answers of clients end"
                    await parts.front.stop()
                for task in beside:
                    task.cancel()
                await parts.recovery.close()
                await parts.replicas.close()
                await parts.weights.close()
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            for service in self._ports.services:
                service.close()
            self._ports.fleet.close()
            if parts.scale_out is not None:
                await parts.scale_out.close()

    async def _unless_stopped(self, start: asyncio.Task[Any]) -> bool:
        """Wait for ``start``; give it up, and return False, when a stop is asked for first."""
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        started = start.done()
        if not started:
            start.cancel()
            await asyncio.wait((start,))
        return started

    async def _start(self) -> None:
        """Workers up, first group formed, first weights published, replicas serving, held-out score taken."""
        setup, parts, counters = self._setup, self._parts, self._run.counters
        gangs, roles = setup.gangs, setup.roles
        parts.hand_moves.open()
        parts.notice_watch.open()
        slots = [slot for gang in gangs for slot in gang.slots]
        await asyncio.gather(
            self._ports.fleet.start([(slot, worker_spec(setup, slot)) for slot in slots]),
            *(service.start() for service in self._ports.services),
        )
        if setup.dilation is not None:
            self._run.clock.dilate(setup.dilation)
        checkpoint = None if setup.saved is None else setup.saved.checkpoint
        await parts.trainers.form([gang.slot_ids for gang in gangs if roles[gang.id] is Role.TRAIN], checkpoint)
        await parts.weights.publish(counters.num_steps)
        await parts.weights.settled()
        await asyncio.gather(*(parts.reallocation.begin(gang, roles[gang.id]) for gang in gangs))
        await parts.turns.begin_rollout()
        if counters.held_out_before is None and counters.num_steps == 0:
            parts.display.status = _SCORING
            self._enter("evaluating")
            found = await parts.evaluation.score(0)
            counters.held_out_before = found.share_right
            setup.tracker.log(0, {**found.metrics(), names.TIME: self._run.clock.now()})
            logger.info("held-out score before training: %s", found)

    async def _loops(self) -> None:
        parts = self._parts
        parts.display.status = "training"
        self._enter("training")
        parts.saver.loops_begin()
        rollouts = parts.rollouts
        if rollouts is not None:
            rollouts.readmit()
        loops = [
            self._run.tasks.create_task(loop)
            for loop in (
                *(() if rollouts is None else (rollouts.admit(), rollouts.score())),
                *(() if self._config.pool.placement == "colocated" else (parts.reallocation.run(),)),
                parts.hand_moves.run(),
                parts.notice_watch.watch(),
                parts.stall_guard.watch(),
                *(watch.watch() for watch in (parts.node_watch, parts.host_watch) if watch is not None),
                *(() if parts.scale_out is None else (parts.scale_out.run(),)),
            )
        ]
        while await self._step():
            pass
        await parts.weights.settled()
        await parts.reallocation.settle()
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)  # one that goes on for a turn would score or drop a group that is not live any more
        if rollouts is not None:
            await rollouts.give_up()
            if self._run.counters.num_steps >= self._config.num_steps:
                rollouts.drop_surplus()
        parts.saver.loops_end()

    async def _step(self) -> bool:
        """The next step and what is due after it; False where there is none."""
        parts, config, step = self._parts, self._config, self._run.counters.num_steps + 1
        saves = self._is_due(config.checkpoint.every_steps, step)
        waited_s = await self._make_room() if saves else 0.0
        report = await parts.training.step(self._stop, copies_state=saves)
        if report is None:
            return False
        metrics = {**report.metrics, **parts.metrics.read(), **parts.costs.metrics()}
        if parts.scale_out is not None:
            metrics |= parts.scale_out.metrics()
        parts.saver.check_integrity()
        parts.display.note_step(metrics)
        if self._is_due(config.evaluation.every_steps, report.step):
            self._enter("evaluating")
            await parts.turns.begin_rollout()
            await parts.weights.settled()
            score = asyncio.create_task(parts.evaluation.score(report.step))
            if await self._unless_stopped(score):  # a stop breaks it off
                metrics |= score.result().metrics()
            self._enter("training")
        if saves:
            metrics[names.SAVE_S] = parts.saver.begin_save(
                report.copies, waited_s=waited_s, held_out=metrics.get(names.HELD_OUT)
            )
        self._setup.tracker.log(report.step, metrics)
        return True

    async def _make_room(self) -> float:
        """For the copy of a checkpoint; how many seconds training waits for the one before to be written."""
        self._enter("saving")
        waited_s = await self._parts.saver.make_room()
        self._enter("training")
        return waited_s

    def _enter(self, stage: Stage) -> None:
        """What the whole run is about from now on."""
        self._run.events.emit(StageEvent(time_s=self._run.clock.now(), stage=stage))

    def _is_due(self, every_steps: int, step: int) -> bool:
        """Whether what is done every so many steps (0: never) is due; after the last one it is done in any case."""
        return every_steps > 0 and step % every_steps == 0 and step < self._config.num_steps

    async def _finish(self) -> None:
        """After the last step, or a stop: checkpoint, then the held-out score if the run came to its end."""
        display = self._parts.display
        if self._setup.dilation is not None:
            await self._read_paced_times()
        display.status = "saving"
        self._enter("saving")
        await self._parts.turns.begin_training()
        failure: CheckpointError | None = None
        try:
            await self._parts.saver.save()
        except CheckpointError as error:
            failure = error
        if self._run.counters.num_steps >= self._config.num_steps:
            if failure is not None:
                logger.warning("%s; the run is scored and summed up all the same", failure)
            display.status = _SCORING
            self._enter("evaluating")
            await self._parts.turns.begin_rollout()
            await self._parts.weights.settled()
            await self._score_after_training()
            display.status = "summing up"
        self._enter("ending")
        if failure is not None:
            raise failure

    async def _read_paced_times(self) -> None:
        """What the workers that are there say of their times."""
        fleet, timeout_s = self._ports.fleet, self._config.pool.health_timeout_s
        for slot_id in fleet.ready:
            try:
                call = fleet[slot_id].pacing_account.remote()
                account = await answer(call, timeout_s=timeout_s, what=f"{slot_id}, asked for its times")
            except WorkerLostError as error:
                logger.warning("%s: its times are not counted", error)
            else:
                self._run.pacing.note(slot_id, account)

    async def _score_after_training(self) -> None:
        num_steps = self._run.counters.num_steps
        score = asyncio.create_task(self._parts.evaluation.score(num_steps))
        if not await self._unless_stopped(score):
            logger.info("stopped: the held-out score after training is not taken")
            return
        found = score.result()
        self._held_out_after, self._is_scored = found.share_right, True
        if found.share_right is not None:
            self._parts.saver.note_score(found.share_right)
        self._setup.tracker.log(num_steps, found.metrics())
        logger.info("held-out score after training: %s", found)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that stopped a task group: the first that is not itself a group."""
    error: BaseException = group.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
