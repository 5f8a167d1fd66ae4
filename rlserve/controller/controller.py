"""The controller of a run: four loops joined by a buffer and a queue, in one process.

::

      prompts                rollouts                     training                 reallocation
    ┌──────────┐  router   ┌───────────┐   buffer   ┌──────────────────┐       ┌──────────────────┐
    │ admit    │──queue───►│ replicas  │───────────►│ take a batch     │       │ observe          │
    │ while    │           │  │        │            │ step the trainers│       │ decide (pure)    │
    │ the      │           │  ▼        │            │ publish weights ─┼──┐    │ act: move slots  │
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
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlserve.controller.answer_log import AnswerLog
from rlserve.controller.checkpoint import save_checkpoint
from rlserve.controller.counters import Counters
from rlserve.controller.display import RunDisplay
from rlserve.controller.evaluation import Evaluation
from rlserve.controller.heartbeat import Heartbeat
from rlserve.controller.observation import RolloutRates, rollout_metrics
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.replicas import Replicas
from rlserve.controller.rollout_loop import RolloutLoop
from rlserve.controller.setup import RunSetup, sampling_params, worker_spec
from rlserve.controller.signal import Signal
from rlserve.controller.stall import progress, situation, stall_timeout_s
from rlserve.controller.summing_up import sum_up
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.training_loop import StepReport, TrainingLoop
from rlserve.errors import CheckpointError
from rlserve.manager.policies.base import Role
from rlserve.manager.policies.factory import create_policy
from rlserve.pool.fleet import Fleet
from rlserve.pool.roles.train import POLICY_FOLDER
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.failure_share import FailureShare
from rlserve.rollout.ledger import Ledger
from rlserve.rollout.requests.router import Router
from rlserve.rollout.scoring import create_scorer
from rlserve.tracking import names
from rlserve.tracking.events import WeightEvent
from rlserve.tracking.summary import RunSummary
from rlserve.weights.base import Receipt
from rlserve.weights.factory import create_transport

logger = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Controller:
    """Runs everything from the first worker's start to the last checkpoint."""

    def __init__(self, setup: RunSetup) -> None:
        config = setup.config
        self._setup = setup
        self._config = config
        self._clock = setup.clock
        self._changed = Signal(
            stall_timeout_s(config),
            moved=lambda: progress(self.training, self.ledger, self.replicas, self.reallocation),
            situation=lambda: situation(self.ledger, self.reallocation),
        )
        self._stop = asyncio.Event()
        self._rates = RolloutRates(setup.clock)
        self._loop_start_s: float | None = None
        self.held_out_after: float | None = None
        self.answers = AnswerLog(setup.tracker, config.tracking.samples, setup.preparation.decode)
        self.counters = Counters()
        self.fleet = Fleet(config.pool.worker_start_timeout_s, worker_python=setup.worker_python)
        self.scorer = create_scorer(setup.preparation.reward, setup.folder.path / "logs" / "reward.log")
        self.heartbeat = Heartbeat(
            self.fleet, interval_s=config.pool.health_interval_s, timeout_s=config.pool.health_timeout_s
        )
        self.transport = create_transport(config.weights)
        self.ledger = Ledger(
            prompts_per_step=config.rollout.prompts_per_step, max_staleness=config.rollout.max_staleness
        )
        self.buffer = SampleBuffer(self.ledger, prompts_per_step=config.rollout.prompts_per_step)
        self._sampling = sampling_params(config, setup.preparation.end_tokens)
        self.router = Router(sampling=self._sampling, run_seed=config.seed)
        self.trainers = TrainerGroup(
            self.fleet,
            switch_timeout_s=config.pool.switch_timeout_s,
            step_timeout_s=config.trainer.step_timeout_s,
            on_one_machine=config.launch.kind == "local",
            on_lost=lambda slot_id, error: self.reallocation.lost(slot_id, Role.TRAIN, error),
        )
        if setup.saved is not None:
            self._restore(setup.saved.content)

    def request_stop(self) -> None:
        """Finish the step under way, save, and return from ``run``."""
        self._stop.set()
        self._changed.notify()

    @property
    def stopped_early(self) -> bool:
        """Whether the run was asked to stop and has steps left."""
        return self._stop.is_set() and self.counters.num_steps < self._config.num_steps

    async def run(self) -> None:
        """The whole run.

        Raises:
            RlserveError: what went wrong, as itself; worker processes are ended in any case.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._build(tasks.create_task)
                display = tasks.create_task(self.display.run())
                heartbeat = tasks.create_task(self.heartbeat.run())
                if await self._unless_stopped(tasks.create_task(self._start())):
                    await self._loops(tasks)
                    await self._finish()
                display.cancel()
                heartbeat.cancel()
                await self.reallocation.close()
                await self.replicas.close()
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            self.scorer.close()
            self.fleet.close()

    # -- building and starting -------------------------------------------------------------------------------

    def _build(self, spawn: Spawn) -> None:
        self._build_rollout_side(spawn)
        self._build_training_side(spawn)

    def _build_rollout_side(self, spawn: Spawn) -> None:
        config, setup = self._config, self._setup
        self.rollouts = RolloutLoop(
            source=setup.preparation.source,
            ledger=self.ledger,
            router=self.router,
            buffer=self.buffer,
            scorer=self.scorer,
            clock=self._clock,
            changed=self._changed,
            reward_failures=FailureShare(config.reward.max_failure_share),
            refusals=FailureShare(config.rollout.max_refusal_share),
            decode=setup.preparation.decode,
            current_version=lambda: self.counters.num_steps,
        )
        self.replicas = Replicas(
            self.fleet,
            self.router,
            self.transport,
            capacity=config.rollout.engine.max_num_sequences,
            switch_timeout_s=config.pool.switch_timeout_s,
            request_timeout_s=config.rollout.request_timeout_s,
            clock=self._clock,
            publish_again=lambda number: self.trainers.publish_again(self.transport, number),
            on_output=self.rollouts.on_output,
            on_started=self.rollouts.on_started,
            on_returned=self.rollouts.on_returned,
            on_delivered=self._on_delivered,
            on_lost=lambda slot_id, error: self.reallocation.lost(slot_id, Role.ROLLOUT, error),
            spawn=spawn,
        )
        setup.tracker.watch_engines(
            lambda: {slot_id: stats.engine_metrics for slot_id, stats in self.replicas.stats.items()}
        )
        self.evaluation = Evaluation(
            config.evaluation,
            setup.preparation.held_out,
            replicas=self.replicas,
            scorer=self.scorer,
            decode=setup.preparation.decode,
            sampling=self._sampling,
            on_answers=self.answers.note_held_out,
        )

    def _build_training_side(self, spawn: Spawn) -> None:
        config, setup = self._config, self._setup
        self.training = TrainingLoop(
            num_steps=config.num_steps,
            trainers=self.trainers,
            transport=self.transport,
            replicas=self.replicas,
            buffer=self.buffer,
            counters=self.counters,
            clock=self._clock,
            tracker=setup.tracker,
            changed=self._changed,
            folder=setup.folder.path,
            rollout_metrics=self._rollout_metrics,
            on_trained=self.answers.note_trained,
            after_step=self._after_step,
            spawn=spawn,
        )
        self.reallocation = Reallocation(
            slots=setup.slots,
            fleet=self.fleet,
            trainers=self.trainers,
            replicas=self.replicas,
            policy=create_policy(config.manager),
            interval_s=config.manager.interval_s,
            max_worker_failures=config.pool.max_worker_failures,
            counters=self.counters,
            clock=self._clock,
            tracker=setup.tracker,
            changed=self._changed,
            queue=lambda: (self.router.num_waiting, len(self.buffer), self.ledger.num_live - len(self.buffer)),
            trainer_waiting=lambda: self.training.waiting,
            on_decision=lambda reason: self.display.note_decision(reason),
            spawn=spawn,
        )
        self.display = RunDisplay(
            setup,
            counters=self.counters,
            router=self.router,
            transport=self.transport,
            replicas=self.replicas,
            reallocation=self.reallocation,
            stopping=lambda: self.stopped_early,
        )

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
        setup, roles = self._setup, self._setup.roles
        await asyncio.gather(
            self.fleet.start([(slot, worker_spec(setup, slot)) for slot in setup.slots]), self.scorer.start()
        )
        trainers = [slot.id for slot in setup.slots if roles[slot.id] is Role.TRAIN]
        await self.trainers.form(trainers, None if setup.saved is None else setup.saved.checkpoint)
        await self.training.publish_first(self.counters.num_steps)
        await asyncio.gather(*(self.reallocation.begin(slot.id, roles[slot.id]) for slot in setup.slots))
        if self.counters.held_out_before is None and self.counters.num_steps == 0:
            self.display.status = "scoring held-out prompts"
            found = await self.evaluation.score(0)
            self.counters.held_out_before = found.share_right
            setup.tracker.log(0, {**found.metrics(), names.TIME: self._clock.now()})
            logger.info("held-out score before training: %s", found)

    # -- the loops -------------------------------------------------------------------------------------------

    async def _loops(self, tasks: asyncio.TaskGroup) -> None:
        self.display.status = "training"
        self._loop_start_s = self._clock.now()
        self.rollouts.readmit(self.replicas)
        loops = [
            tasks.create_task(self.rollouts.admit(self.replicas, self._num_groups_wanted)),
            tasks.create_task(self.rollouts.score()),
            tasks.create_task(self.reallocation.run()),
        ]
        await self.training.run(self._stop)
        await self.reallocation.settle()
        for loop in loops:
            loop.cancel()
        self.counters.loop_s += self._clock.now() - self._loop_start_s
        self._loop_start_s = None

    def _num_groups_wanted(self) -> int:
        """Groups to admit in the whole run: every step's, and one more for each that was dropped."""
        dropped = sum(self.ledger.num_dropped.values())
        return self._config.num_steps * self._config.rollout.prompts_per_step + dropped

    async def _after_step(self, report: StepReport) -> None:
        metrics, config = dict(report.metrics), self._config
        self._check_integrity()
        self.display.note_step(metrics)
        every = config.evaluation.every_steps
        if every and report.step % every == 0 and report.step < config.num_steps:
            await self.replicas.broadcast()
            score = asyncio.create_task(self.evaluation.score(report.step))
            if await self._unless_stopped(score):  # a stop breaks it off
                metrics |= score.result().metrics()
        self._setup.tracker.log(report.step, metrics)
        every = config.checkpoint.every_steps
        if every and report.step % every == 0 and report.step < config.num_steps:
            try:
                await self._save()
            except CheckpointError as error:  # a full disk may have room again by the next one
                logger.warning("%s; the run goes on", error)

    async def _finish(self) -> None:
        """After the last step, or a stop: checkpoint, then the held-out score if the run came to its end."""
        self.display.status = "saving"
        failure: CheckpointError | None = None
        try:
            await self._save()
        except CheckpointError as error:
            failure = error
        if not self.stopped_early:
            if failure is not None:
                logger.warning("%s; the run is scored and summed up all the same", failure)
            self.display.status = "scoring held-out prompts"
            await self.replicas.broadcast()
            await self._score_after_training()
            self.display.status = "summing up"
        if failure is not None:
            raise failure

    async def _score_after_training(self) -> None:
        score = asyncio.create_task(self.evaluation.score(self.counters.num_steps))
        if not await self._unless_stopped(score):
            logger.info("stopped: the held-out score after training is not taken")
            return
        found = score.result()
        self.held_out_after = found.share_right
        self._setup.tracker.log(self.counters.num_steps, found.metrics())
        logger.info("held-out score after training: %s", found)

    # -- state -----------------------------------------------------------------------------------------------

    async def _save(self) -> None:
        async def write_model(folder: Path) -> None:
            await self.trainers.save(folder)
            await asyncio.to_thread(self._setup.preparation.tokenizer.save_pretrained, folder / POLICY_FOLDER)

        self._check_integrity()
        run = {
            "counters": self._current_counters().to_dict(),
            "ledger": self.ledger.snapshot(),
            "source": self._setup.preparation.source.snapshot(),
            "elapsed_s": self._clock.now(),
        }
        await save_checkpoint(
            self._setup.folder.checkpoints,
            self.counters.num_steps,
            write_model,
            run,
            keep=self._config.checkpoint.keep,
        )

    def _restore(self, run: dict[str, Any]) -> None:
        """All but the place in the data, which is gone back to before anything is started."""
        self.counters = Counters.from_dict(run["counters"])
        self.ledger.restore(run["ledger"], current_version=self.counters.num_steps, time_s=self._clock.now())

    def _check_integrity(self) -> None:
        """Assert what always holds of the owners of state: cheap beside a step, and a bug is found where it is made."""
        for owner in (self.ledger, self.router, self.buffer, self.reallocation.table):
            owner.check_integrity()

    def _current_counters(self) -> Counters:
        """The counters with what this process has added so far."""
        running_s = 0.0 if self._loop_start_s is None else self._clock.now() - self._loop_start_s
        return replace(
            self.counters,
            num_generated_tokens=self.counters.num_generated_tokens + self.replicas.num_generated_tokens,
            loop_s=self.counters.loop_s + running_s,
        )

    def summary(self) -> RunSummary:
        """The numbers that the run comes down to."""
        return sum_up(
            self._current_counters(),
            self.ledger,
            held_out_after=self.held_out_after,
            weight_version=self.transport.version,
            seconds_total=self._clock.now(),
        )

    # -- callbacks -------------------------------------------------------------------------------------------

    def _on_delivered(self, slot_id: str, receipt: Receipt, duration_s: float) -> None:
        self._setup.tracker.record(
            WeightEvent(time_s=self._clock.now(), version=receipt.version, slot_id=slot_id, duration_s=duration_s)
        )

    def _rollout_metrics(self) -> dict[str, float]:
        return dict(
            rollout_metrics(
                ledger=self.ledger,
                buffer=self.buffer,
                router=self.router,
                replicas=self.replicas,
                reallocation=self.reallocation,
                counters=self.counters,
                rates=self._rates,
            )
        )


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that stopped a task group: the first that is not itself a group."""
    error: BaseException = group.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
