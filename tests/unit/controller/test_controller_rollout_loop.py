"""The rollout loop on real bookkeeping with a fake scorer: admission, scoring, and bounded failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from controller_fakes import recorded, settled, until
from rollout_loop_setting import Setting, start
from virtual_time import run_virtual

from rlserve.controller.clock import RunClock
from rlserve.controller.controller import first_error
from rlserve.controller.events import GroupFinished
from rlserve.controller.rollout_loop import WORKLOAD_FILTERED
from rlserve.engine.requests.request import SamplingParams
from rlserve.errors import RewardError, UserError
from rlserve.rollout.admission import NOT_NEEDED
from rlserve.rollout.group_filter import EQUAL_REWARDS, GroupFilter
from rlserve.rollout.groups import mean_reward_parts
from rlserve.rollout.rewards.base import Score
from rlserve.rollout.workload.config import WorkloadConfig
from rlserve.rollout.workload.factory import create_workload


def test_a_load_that_keeps_few_groups_drops_the_others_for_its_own_reason() -> None:
    config = WorkloadConfig(kept_share=1e-9)
    workload = create_workload(config, seed=0, num_steps=10, tokens_scale=1.0)

    async def scenario() -> None:
        setting = Setting(workload)
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            setting.finish_all()
            while not setting.ledger.num_dropped:
                await settled()
            for loop in loops:
                loop.cancel()
        assert set(setting.ledger.num_dropped) == {WORKLOAD_FILTERED}
        assert len(setting.buffer) == 0

    asyncio.run(scenario())


def setting_with_tools(read: Callable[[], float]) -> Setting:
    """Every group waits 40 s for its tools."""
    config = WorkloadConfig(tool_share=1.0, tool_wait_s=40.0, sigma=0.0)
    workload = create_workload(config, seed=0, num_steps=10, tokens_scale=1.0)
    return Setting(workload, RunClock(started=0.0, read=read))


def test_a_group_that_waits_for_tools_is_scored_after_them() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        setting = setting_with_tools(loop.time)
        async with setting.context.tasks as tasks:
            loops = start(setting, tasks)
            await asyncio.sleep(1.0)
            setting.finish_all()
            await asyncio.sleep(39.0)
            assert len(setting.buffer) == 0
            await asyncio.sleep(2.0)
            assert len(setting.buffer) == 4
            for each in loops:
                each.cancel()
        assert loop.time() == 42.0

    run_virtual(scenario())


def test_groups_are_admitted_while_there_is_room_and_scored_into_the_buffer() -> None:
    async def scenario() -> None:
        setting = Setting()
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            assert setting.ledger.num_admitted == 4, "room for (1 + 1) * 2"
            setting.finish_all()
            await until(lambda: len(setting.buffer) == 4)
            assert setting.buffer.take(0) is not None
            setting.buffer.commit(time_s=0.0)
            assert setting.ledger.num_trained == 2
            setting.buffer.check_integrity()
            for loop in loops:
                loop.cancel()

    asyncio.run(scenario())


def test_no_more_groups_are_admitted_than_the_run_needs() -> None:
    async def scenario() -> None:
        setting = Setting(num_groups=3)
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            assert setting.ledger.num_admitted == 3
            for loop in loops:
                loop.cancel()

    asyncio.run(scenario())


def test_towards_the_end_dropped_groups_are_replaced_in_advance_and_the_surplus_goes() -> None:
    async def scenario() -> None:
        setting = Setting(num_groups=2)
        setting.scorer.scores = Score(value=None)
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            assert setting.ledger.num_admitted == 2
            setting.finish_all()
            await until(lambda: setting.ledger.num_dropped == {"reward_left_out": 2})
            await until(lambda: setting.ledger.num_admitted == 6)
            setting.scorer.scores = Score(value=1.0)
            setting.finish(3)
            await until(lambda: len(setting.buffer) == 3)
            assert setting.buffer.take(0) is not None
            setting.buffer.commit(time_s=0.0)
            for loop in loops:
                loop.cancel()
        assert len(setting.replicas.held) == 1
        setting.loop.drop_surplus()
        assert setting.ledger.num_dropped == {"reward_left_out": 2, NOT_NEEDED: 2}, "one was finished, one under way"
        assert (setting.ledger.num_live, setting.replicas.held, len(setting.buffer)) == (0, [], 0)
        setting.ledger.check_integrity()
        setting.buffer.check_integrity()
        setting.router.check_integrity()

    asyncio.run(scenario())


def test_groups_of_equal_rewards_are_replaced_until_the_steps_bound() -> None:
    async def scenario() -> None:
        setting = Setting(group_filter=GroupFilter(max_per_step=3))
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            setting.finish(2)
            await until(lambda: setting.ledger.num_dropped == {EQUAL_REWARDS: 2})
            await until(lambda: setting.ledger.num_admitted == 6)
            setting.finish(2)
            await until(lambda: setting.ledger.num_dropped == {EQUAL_REWARDS: 3} and len(setting.buffer) == 1)
            for loop in loops:
                loop.cancel()
        setting.ledger.check_integrity()
        setting.buffer.check_integrity()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_filtered", [False, True])
def test_the_greedy_answer_is_scored_and_not_among_the_samples(is_filtered: bool) -> None:
    """Of equal rewards are groups whose answers are as good as the greedy one."""

    async def scenario() -> None:
        group_filter = GroupFilter(max_per_step=1) if is_filtered else None
        setting = Setting(sampling=SamplingParams(n=3, num_greedy=1), group_filter=group_filter)
        setting.scorer.value_of_index = (1.0, 1.0, 0.0)
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            setting.finish(2)
            await until(lambda: len(setting.buffer) == 2)
            (first, _) = setting.buffer.take(0) or (None, None)
            assert first is not None
            assert first.rewards == (1.0, 1.0)
            assert [sample.index for sample in first.output.samples] == [0, 1]
            assert first.greedy is not None
            assert first.greedy.reward == 0.0
            setting.buffer.commit(time_s=0.0)
            setting.scorer.value_of_index = (1.0, 1.0, 1.0)
            setting.finish(1)
            await until(
                lambda: setting.ledger.num_dropped == {EQUAL_REWARDS: 1} if is_filtered else len(setting.buffer) == 1
            )
            for loop in loops:
                loop.cancel()
        assert setting.ledger.num_trained == 2
        setting.ledger.check_integrity()

    asyncio.run(scenario())


def test_no_group_waits_for_tools_after_the_end() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        setting = setting_with_tools(loop.time)
        async with setting.context.tasks as tasks:
            loops = start(setting, tasks)
            await asyncio.sleep(1.0)
            setting.finish_all()
            await asyncio.sleep(1.0)
            for each in loops:
                each.cancel()
            await setting.loop.give_up()
            setting.loop.drop_surplus()
        assert loop.time() == 2.0
        assert setting.ledger.num_dropped == {NOT_NEEDED: 4}

    run_virtual(scenario())


REFUSED = r"the engine refused 3 of the last 32 prompt groups.*max_refusal_share allows \(2\); the last, 0:2: too long"
FAILED = r"colour\nthe reward failed for 3 of the last 32 prompt groups, more than reward.max_failure_share"


@pytest.mark.parametrize(
    ("error", "scores", "reason", "message"),
    [
        ("too long", Score(value=1.0), "engine_error", REFUSED),
        (None, RewardError("colour"), "reward_error", FAILED),
        (None, Score(error="colour"), "reward_error", FAILED),
    ],
)
def test_a_few_failures_are_dropped_and_one_more_stops_the_run(
    error: str | None, scores: Score | RewardError, reason: str, message: str
) -> None:
    async def run(setting: Setting) -> None:
        async with asyncio.TaskGroup() as tasks:
            start(setting, tasks)
            tasks.create_task(setting.keep_failing(error))

    async def scenario() -> None:
        setting = Setting()
        setting.scorer.scores = scores
        with pytest.raises(ExceptionGroup) as caught:
            await run(setting)
        with pytest.raises(UserError, match=message):
            raise first_error(caught.value)
        assert setting.ledger.num_dropped[reason] in (3, 4), "a group that was in the other worker's hands may follow"
        setting.ledger.check_integrity()

    asyncio.run(scenario())


def test_a_slow_group_holds_up_no_other() -> None:
    async def scenario() -> None:
        setting = Setting()
        setting.scorer.gates["0:0"] = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            setting.finish_all()
            await until(lambda: len(setting.buffer) == 3)
            assert setting.scorer.under_way == {"0:0"}
            setting.scorer.gates["0:0"].set()
            await until(lambda: len(setting.buffer) == 4)
            setting.buffer.check_integrity()
            for loop in loops:
                loop.cancel()

    asyncio.run(scenario())


def test_groups_that_the_reward_leaves_out_are_no_failures(caplog: pytest.LogCaptureFixture) -> None:
    """However many: but a run in which nothing is ever trained says so."""

    async def scenario() -> None:
        setting = Setting()
        setting.scorer.scores = Score(value=None)
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            while sum(setting.ledger.num_dropped.values()) < 100:
                setting.finish_all()
                await settled()
            setting.ledger.check_integrity()
            for loop in loops:
                loop.cancel()

    asyncio.run(scenario())
    assert [record.args for record in caplog.records] == [(32,), (64,)]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        (Score(value=1.0), True),
        (Score(value=None), False),
        (Score(error="colour"), False),
        (RewardError("colour"), False),
    ],
)
def test_of_each_answered_group_is_told_whether_it_was_kept(scores: Score | RewardError, kept: bool) -> None:
    async def scenario() -> None:
        setting = Setting(num_groups=1)
        setting.scorer.scores = scores
        finished = recorded(setting.context.events, GroupFinished)
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            setting.finish_all()
            await until(lambda: bool(finished))
            assert finished == [GroupFinished(kept=kept, num_tokens=1)]
            for loop in loops:
                loop.cancel()

    asyncio.run(scenario())


def test_the_parts_of_a_reward_become_means() -> None:
    async def scenario() -> None:
        setting = Setting(num_groups=2)
        setting.scorer.scores = Score(value=0.5, parts={"format": 1.0})
        async with asyncio.TaskGroup() as tasks:
            loops = start(setting, tasks)
            await settled()
            setting.finish_all()
            await until(lambda: len(setting.buffer) == 2)
            batch = setting.buffer.take(0)
            assert batch is not None
            assert mean_reward_parts(batch) == {"reward/format/mean": 1.0}
            for loop in loops:
                loop.cancel()

    asyncio.run(scenario())


def test_what_a_checkpoint_left_live_is_given_to_the_replicas_again() -> None:
    """At once: with the ledger full of them, no admission would ever give them out."""
    setting = Setting()
    before = Setting()
    before.ledger.admit("0:0", position=0, current_version=0, time_s=0.0)
    setting.ledger.restore(before.ledger.snapshot(), current_version=5, time_s=0.0)
    setting.router.set_version("r0", 5)
    setting.loop.readmit()
    assert setting.replicas.held == ["training/0:0#1"]
