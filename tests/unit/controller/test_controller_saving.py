"""Checkpoints are written beside the training, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from controller_fakes import recorded, run_context

from rlserve.config.tree import CheckpointConfig
from rlserve.controller.checkpoint import checkpoints, held_out_score, is_whole, read_run
from rlserve.controller.group_copies import GroupCopies, MemberCopy
from rlserve.controller.saving import RunSaver, roles_at
from rlserve.errors import CheckpointError, WriterLostError
from rlserve.manager.roles import Role
from rlserve.pool.base import Copied, Copies
from rlserve.pool.config import PoolConfig
from rlserve.tracking.events import CheckpointEvent

COPIES = tuple(
    MemberCopy(slot_id=slot_id, worker=cast(Any, None), copies=Copies(state=True), copied=Copied(state_s=state_s))
    for slot_id, state_s in (("a", 0.25), ("b", 0.5))
)
"""Of a step."""


class FakeTrainers:
    """Copies at once, and writes when it is let."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()
        self.failures: list[Exception] = []
        """Of the next writes."""
        self.num_copies = 0

    async def copy(self, copies: GroupCopies) -> tuple[MemberCopy, ...]:
        assert copies == GroupCopies(state=True)
        self.num_copies += 1
        return COPIES

    async def write_state(self, slot_ids: Sequence[str], folder: Path) -> None:
        assert slot_ids == ("a", "b")
        await self.may_write.wait()
        (folder / "state").write_text("half")
        if self.failures:
            raise self.failures.pop(0)


class Saving:
    """A saver among fakes."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path) -> None:
        self.run, self.trainers, self.folder = run_context(tasks), FakeTrainers(), folder
        self.events = recorded(self.run.events, CheckpointEvent)
        owner = SimpleNamespace(check_integrity=lambda: None, snapshot=dict)
        setup = SimpleNamespace(
            preparation=SimpleNamespace(tokenizer=SimpleNamespace(save_pretrained=lambda _: None), source=owner),
            config=SimpleNamespace(checkpoint=CheckpointConfig(), pool=PoolConfig(num_initial_rollout=1)),
            folder=SimpleNamespace(checkpoints=folder),
        )
        self.saver = RunSaver(
            self.run,
            cast(Any, SimpleNamespace(ledger=owner, router=owner, buffer=owner)),
            cast(Any, setup),
            cast(Any, self.trainers),
            weights=cast(Any, None),
            replicas=cast(Any, SimpleNamespace(num_generated_tokens=0)),
            reallocation=cast(Any, SimpleNamespace(table=owner, roles={"a": Role.TRAIN, "b": Role.ROLLOUT})),
        )

    def at_step(self, step: int) -> RunSaver:
        self.run.counters.num_steps = step
        return self.saver

    @property
    def saved(self) -> list[int]:
        """Steps of those that are there; each holds what was so when it was begun."""
        found = {path.name: read_run(path).num_steps for path in checkpoints(self.folder)}
        assert list(found) == [f"step_{step:06d}" for step in found.values()]
        return list(found.values())


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_waits_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            saving = Saving(tasks, tmp_path)
            assert saving.at_step(2).begin_save(COPIES, waited_s=2.0, held_out=0.5) >= 2.5, "what the slowest took"
            saving.run.counters.num_steps = 3
            assert saving.saved == []
            second = asyncio.ensure_future(saving.saver.make_room())
            await asyncio.sleep(0)
            assert not second.done(), "the next copy would take the place of the one that is being written"
            saving.trainers.may_write.set()
            assert await second > 0.0
            assert saving.saved == [2]
            saving.at_step(4).begin_save(COPIES, waited_s=0.0)
            assert held_out_score(checkpoints(tmp_path)[0]) == 0.5
            await saving.at_step(5).save()
            assert saving.saved == [4, 5], "the run waits for the last, and for what was begun before"
            saving.saver.note_score(0.75)
            assert held_out_score(checkpoints(tmp_path)[-1]) == 0.75
            assert is_whole(checkpoints(tmp_path)[-1])
            assert [event.step for event in saving.events] == [2, 4, 5]

    asyncio.run(scenario())


def test_a_run_goes_on_with_the_split_that_it_had(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            saving = Saving(tasks, tmp_path)
            saving.trainers.may_write.set()
            await saving.at_step(2).save()

    asyncio.run(scenario())
    saved, first = read_run(checkpoints(tmp_path)[0]), {"a": Role.ROLLOUT, "b": Role.TRAIN}
    assert roles_at(saved, PoolConfig(num_initial_rollout=1), first) == {"a": Role.TRAIN, "b": Role.ROLLOUT}
    assert roles_at(saved, PoolConfig(num_initial_rollout=2), first) == first, "the user wants another"
    assert roles_at(saved, PoolConfig(num_initial_rollout=1, placement="colocated"), first) == first


@pytest.mark.parametrize("failure", [CheckpointError("disk full"), WriterLostError("b is lost")])
def test_one_that_cannot_be_written_in_mid_run_is_a_warning_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            saving = Saving(tasks, tmp_path)
            saving.trainers.may_write.set()
            saving.trainers.failures = [failure]
            saving.at_step(2).begin_save(COPIES, waited_s=0.0)
            await saving.saver.settled()
            assert f"{failure}; the run goes on" in caplog.text
            assert list(tmp_path.iterdir()) == []
            saving.at_step(4).begin_save(COPIES, waited_s=0.0)
            await saving.saver.settled()
            assert saving.saved == [4]

    asyncio.run(scenario())


def test_the_last_is_written_anew_without_a_lost_writer_and_fails_where_the_disk_is_full(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            saving = Saving(tasks, tmp_path)
            saving.trainers.may_write.set()
            saving.trainers.failures = [WriterLostError("b is lost")]
            await saving.at_step(2).save()
            assert (saving.saved, saving.trainers.num_copies) == ([2], 2)
            saving.trainers.failures = [CheckpointError("disk full")]
            with pytest.raises(CheckpointError, match="disk full"):
                await saving.at_step(3).save()
            saving.trainers.failures = [WriterLostError("lost")] * 9
            with pytest.raises(WriterLostError):
                await saving.at_step(3).save()
            assert saving.saved == [2]

    asyncio.run(scenario())


def test_a_run_that_ends_before_a_checkpoint_is_written_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            Saving(tasks, tmp_path).at_step(2).begin_save(COPIES, waited_s=0.0)
            await asyncio.sleep(0)
            raise RuntimeError

    with pytest.raises(ExceptionGroup):
        asyncio.run(scenario())
    assert "the checkpoint of step 2 was not yet written, and is given up" in caplog.text
    assert checkpoints(tmp_path) == []
