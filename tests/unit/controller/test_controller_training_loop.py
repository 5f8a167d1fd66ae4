"""The training loop with fake trainers: the order of a step, a stop, and a loss that is not finite."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from controller_fakes import FakeClock, output, recorded, run_context, settled

from rlserve.controller.batches.rollouts import RolloutBatches
from rlserve.controller.events import GroupsTrained, StepEnded
from rlserve.controller.group_copies import GroupCopies, GroupStep, MemberCopy
from rlserve.controller.resizes import Resize
from rlserve.controller.training_loop import StepReport, TrainingLoop
from rlserve.controller.turns.at_once import AtOnce
from rlserve.engine.requests.request import FinishReason
from rlserve.errors import NonFiniteLossError
from rlserve.pool.base import Copied, Copies
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.groups import PromptGroup, ScoredGroup
from rlserve.rollout.ledger import Ledger
from rlserve.tracking.events import StepEvent, TrainedBatch
from rlserve.trainers import Traffic


class Setting:
    """Steps of one prompt group; some groups are in the buffer."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path, num_steps: int, *, num_groups: int = 4) -> None:
        self.log: list[str] = []
        self.reports: list[StepReport] = []
        self.ledger = Ledger(prompts_per_step=1, max_staleness=3)
        self.buffer = SampleBuffer(self.ledger, prompts_per_step=1)
        self.clock = FakeClock(0.0)
        self.busy_s = 0.0
        """Seconds in which versions of the weights were under way."""
        self.snapshot_s = 1.0
        self.pause_s = 0.0
        """Seconds in which training stood still for changes of the group."""
        self.change_s = self.broken_s = 0.0
        """Of those, what each step waits; what of a step a loss breaks."""
        self.members = ("t0", "t1")
        self.resizes: list[Resize] = []
        self.context = run_context(tasks, self.clock)
        self.counters, self.changed = self.context.counters, self.context.changed
        self.trained = recorded(self.context.events, GroupsTrained)
        self.batches = recorded(self.context.events, TrainedBatch)
        self.ended = recorded(self.context.events, StepEnded)
        self.told = recorded(self.context.events, StepEvent)
        self.failure: Exception | None = None
        fakes: Any = self
        self.loop = TrainingLoop(
            self.context,
            num_steps=num_steps,
            turns=AtOnce(),
            trainers=fakes,
            weights=fakes,
            batches=RolloutBatches(self.context, num_steps=num_steps, turns=AtOnce(), buffer=self.buffer),
            folder=folder,
        )
        for position in range(num_groups):
            self.buffer_group(position)

    def copies(self, version: int) -> GroupCopies:
        return GroupCopies(version=version)

    async def step(self, batch: Any, copies: GroupCopies) -> GroupStep:
        self.log.append(f"step {batch.sample_ids}")
        self.clock.now_s += self.change_s
        self.pause_s += self.change_s
        self.clock.now_s += 2.0
        if self.failure is not None:
            raise self.failure
        copied = Copied(weights_s=0.25, state_s=0.25 if copies.state else 0.0)
        (asked,) = copies.of_each(["t0"]).values()
        made = MemberCopy(slot_id="t0", worker=cast(Any, None), copies=asked, copied=copied)
        metrics = {"training/log_prob_diff_mean": 0.5}
        return GroupStep(metrics=metrics, copies=(made,), duration_s=2.0, broken_s=self.broken_s)

    def take_resizes(self) -> list[Resize]:
        resizes, self.resizes = self.resizes, []
        return resizes

    async def publish(self, version: int, copies: Sequence[MemberCopy]) -> None:
        assert [copy.copies.version for copy in copies] == [version]
        self.log.append(f"snapshot {version}, {self.ledger.num_trained} trained")

    def metrics(self) -> dict[str, float]:
        return {"weights/version": 0.0}

    async def run(self, stop: asyncio.Event) -> None:
        """Step until there is nothing more to do."""
        while (report := await self.loop.step(stop)) is not None:
            await settled()
            self.reports.append(report)
            self.log.append(f"after step {report.step}")

    def buffer_group(self, position: int) -> None:
        name = f"0:{position}"
        group = PromptGroup(
            id=name, position=position, row=position, prompt_text="", prompt_token_ids=(1, 2), answer=None
        )
        self.ledger.admit(name, position=position, current_version=0, time_s=0.0)
        self.ledger.start(name, version=0, time_s=0.0)
        self.ledger.score(name, time_s=0.0)
        scored = ScoredGroup(group=group, output=output(name, FinishReason.STOP), rewards=(1.0,), attempt=0)
        self.buffer.put(scored, time_s=0.0)


def test_the_weights_of_a_step_are_copied_before_its_groups_count_as_trained(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path, num_steps=1)
            await setting.run(asyncio.Event())
        assert setting.log == [
            "step ('0:0/0#0',)",
            "snapshot 1, 0 trained",
            "after step 1",
        ]
        (batch,) = setting.batches
        assert (batch.step, batch.group_ids, batch.rewards) == (1, ("0:0",), ((1.0,),))
        assert setting.counters.sum_abs_log_prob_difference == 0.5
        assert [(event.step, [scored.group.id for scored in event.groups]) for event in setting.trained] == [
            (1, ["0:0"])
        ]
        assert setting.reports[0].metrics["response_length/clip_ratio"] == 0.0

    asyncio.run(scenario())


@pytest.mark.parametrize("copies_state", [False, True])
def test_trainers_copy_with_the_step_what_goes_on_beside_the_next(tmp_path: Path, copies_state: bool) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path, num_steps=1)
            work = recorded(setting.context.events, StepEvent)
            report = await setting.loop.step(asyncio.Event(), copies_state=copies_state)
        assert report is not None
        (copy,) = report.copies
        assert copy.copies == Copies(version=1, state=copies_state)
        # The work of a step does not count what was copied after it.
        (event,) = work
        assert event.work_end_s - event.work_begin_s == (1.5 if copies_state else 1.75)
        assert event.work_begin_s == 0.0

    asyncio.run(scenario())


def test_a_change_of_the_group_is_in_the_metrics_of_the_next_step_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path, num_steps=2)
            setting.resizes.append(Resize(duration_s=0.5, traffic=Traffic(moved_bytes=8, least_bytes=8)))
            await setting.run(asyncio.Event())
        first, second = setting.reports
        assert (first.metrics["training/resize_s"], first.metrics["training/resize_moved_bytes"]) == (0.5, 8)
        assert not [name for name in second.metrics if "resize" in name]

    asyncio.run(scenario())


def test_the_loop_ends_with_its_steps_or_a_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path, num_steps=10)
            stop = asyncio.Event()
            running = asyncio.create_task(setting.run(stop))
            while not setting.loop.waiting:
                await settled()
            assert setting.counters.num_steps == 4, "all that the buffer holds"
            assert setting.counters.max_staleness == 3
            stop.set()
            setting.changed.notify()
            await running
        assert setting.ledger.num_trained == 4

    asyncio.run(scenario())


def test_a_loss_that_is_not_finite_keeps_the_batch_and_trains_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path, num_steps=1)
            setting.failure = NonFiniteLossError("step 1 is not finite and was not applied")
            with pytest.raises(NonFiniteLossError, match=r"step 1 is not finite.*failed_batch_step_1\.npz"):
                await setting.run(asyncio.Event())
        assert setting.ledger.num_trained == 0
        with np.load(tmp_path / "failed_batch_step_1.npz") as batch:
            assert batch["token_ids"].tolist() == [1, 2, 7]

    asyncio.run(scenario())


def test_a_batch_that_cannot_be_kept_does_not_hide_why_the_step_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path / "gone", num_steps=1)
            setting.failure = NonFiniteLossError("step 1 is not finite and was not applied")
            with pytest.raises(NonFiniteLossError, match=r"not finite.* cannot be written to .*: No such file"):
                await setting.run(asyncio.Event())

    asyncio.run(scenario())


def test_a_step_tells_what_it_waited_for_what_was_broken_off_and_what_it_copied_for_a_checkpoint(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path, num_steps=1, num_groups=1)
            setting.change_s, setting.broken_s = 0.75, 0.5
            await setting.loop.step(asyncio.Event(), copies_state=True)
        (told,) = setting.told
        parts = (told.weights_wait_s, told.change_wait_s, told.broken_s, told.state_copy_s)
        assert parts == (0.0, 0.75, 0.5, 0.25)
        assert (told.begin_s, told.work_begin_s, told.work_end_s, told.time_s) == (0.0, 0.75, 2.25, 2.75)

    asyncio.run(scenario())


def test_time_that_a_step_waits_for_weights_is_the_snapshot_and_the_waiting_while_they_travel(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, tmp_path, num_steps=2, num_groups=1)
            running = asyncio.create_task(setting.run(asyncio.Event()))
            while not setting.loop.waiting:
                await settled()
            setting.clock.now_s += 10.0
            setting.busy_s += 3.0
            setting.buffer_group(1)
            setting.changed.notify()
            await running
        found = [(report.metrics["timing_s/wait"], report.metrics["timing_s/weights"]) for report in setting.reports]
        assert found == [(0.0, 1.0), (10.0, 4.0)]
        # Told without counting any second twice.
        assert [(step.wait_s, step.weights_s, step.work_s) for step in setting.ended] == [
            (0.0, 1.0, 1.75),
            (7.0, 4.0, 1.75),
        ]
        assert [(step.slot_ids, step.num_groups, step.num_tokens) for step in setting.ended] == [
            (("t0", "t1"), 1, 3),
            (("t0", "t1"), 1, 3),
        ]

    asyncio.run(scenario())
