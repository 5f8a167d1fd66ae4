"""What the trainer group asks of its members for a checkpoint: to copy, write and load their part of the state."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from controller_fakes import BATCH
from trainer_group_setting import Setting, raised

from rlserve.controller.group_copies import GroupCopies
from rlserve.errors import WorkerFailedError, WriterLostError
from rlserve.pool.base import Copied, Joined

STATE = GroupCopies(state=True)


def test_all_members_copy_their_state_and_do_it_again_without_one_that_is_lost() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        setting.fleet["a"].kill()
        answers = iter([WorkerFailedError("all-gather failed"), Copied()])
        setting.fleet["b"].answers["copy_between_steps"] = lambda _: raised(next(answers))
        assert [copy.slot_id for copy in await setting.group.copy(STATE)] == ["b", "c"]
        assert setting.lost == ["a"]
        copies = [slot_id for slot_id, method in setting.fleet.log if method == "copy_between_steps"]
        assert sorted(copies) == ["b", "b", "c", "c"]

    asyncio.run(scenario())


def test_a_state_is_written_during_a_step_and_by_those_who_have_left_and_given_up_where_one_is_lost() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        copied = [copy.slot_id for copy in await setting.group.copy(STATE)]
        assert await setting.group.remove(("c",), on_leaving=lambda: None)
        async with setting.group._boundary.training():  # as while a step is under way
            await setting.group.write_state(copied, Path("folder"))
        writes = [slot_id for slot_id, method in setting.fleet.log if method == "write_state"]
        assert sorted(writes) == ["a", "b", "c"]
        setting.fleet["b"].kill()
        with pytest.raises(WriterLostError, match="checkpoint folder is given up"):
            await setting.group.write_state(copied, Path("folder"))
        assert setting.group.members == ("a", "b"), "whoever steps finds that, or the heartbeat"

    asyncio.run(scenario())


def test_all_members_load_their_part_of_a_checkpoint() -> None:
    async def scenario() -> None:
        setting = Setting("a", "b")
        setting.fleet["a"].answers["load_trainer"] = setting.fleet["b"].answers["load_trainer"] = 7
        await setting.group.form([("a",), ("b",)], Path("folder"))
        calls = [call for call in setting.fleet.log if call[1] in ("join_training", "load_trainer")]
        assert calls[-2:] == [("a", "load_trainer"), ("b", "load_trainer")]
        # Seven steps are done: an eighth that a survivor had completed is told from them.
        setting.fleet["b"].kill()
        setting.fleet["a"].answers |= {
            "step": WorkerFailedError("all-gather failed"),
            "join_training": Joined(num_steps=8),
            "last_metrics": {"loss": 3.0},
        }
        assert (await setting.group.step(BATCH)).metrics == {"loss": 3.0}

    asyncio.run(scenario())
