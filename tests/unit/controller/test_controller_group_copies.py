"""What the trainers copy with a step, and between two, also where one of them is lost on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from controller_fakes import BATCH
from ray.exceptions import RayActorError
from trainer_group_setting import Setting, raised

from rlserve.controller.group_copies import GroupCopies, GroupStep
from rlserve.errors import WorkerFailedError
from rlserve.pool.base import Copied, Copies, Joined, Stepped

BOTH = GroupCopies(version=1, state=True)


def of(step: GroupStep) -> dict[str, Copies]:
    return {copy.slot_id: copy.copies for copy in step.copies}


def asked(setting: Setting, slot_id: str, method: str) -> list[Any]:
    """The last argument of each call."""
    return [arguments[-1] for arguments in setting.fleet[slot_id].arguments.get(method, [])]


@pytest.mark.parametrize(
    ("copies", "expected"),
    [
        (GroupCopies(), {}),
        (GroupCopies(version=1), {"a": Copies(version=1)}),
        (GroupCopies(version=1, are_spread=True), dict.fromkeys("abc", Copies(version=1))),
        (GroupCopies(state=True), dict.fromkeys("abc", Copies(state=True))),
        (BOTH, {"a": Copies(version=1, state=True), "b": Copies(state=True), "c": Copies(state=True)}),
    ],
    ids=["nothing", "weights", "spread weights", "state", "weights and state"],
)
def test_members_copy_what_they_have_with_their_step(copies: GroupCopies, expected: dict[str, Copies]) -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        assert of(await setting.group.step(BATCH, copies)) == expected
        assert [method for _, method in setting.fleet.log] == ["step"] * 3, "no other call"
        assert asked(setting, "c", "step") == [expected.get("c", Copies())]

    asyncio.run(scenario())


def test_a_step_takes_what_its_slowest_copy_takes_besides_its_work() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()

        def stepped(_: object, copies: Copies, weights_s: float) -> Stepped:
            setting.clock.now_s += 1.0
            return Stepped(metrics={}, copied=Copied(weights_s=weights_s, state_s=0.25))

        setting.fleet["a"].answers["step"] = lambda *arguments: stepped(*arguments, weights_s=0.5)
        setting.fleet["b"].answers["step"] = lambda *arguments: stepped(*arguments, weights_s=0.0)
        done = await setting.group.step(BATCH, BOTH)
        assert (done.duration_s, done.copy_s, done.work_s) == (2.0, 0.75, 1.25)
        assert [copy.worker for copy in done.copies] == [setting.fleet["a"], setting.fleet["b"]]

    asyncio.run(scenario())


def test_the_next_rank_copies_the_weights_with_a_step_that_is_done_again() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        setting.fleet["a"].kill()
        answers = iter([WorkerFailedError("all-gather failed"), Stepped(metrics={"loss": 2.0})])
        setting.fleet["b"].answers["step"] = lambda *_: raised(next(answers))
        done = await setting.group.step(BATCH, BOTH)
        assert of(done) == {"b": Copies(version=1, state=True)}
        assert asked(setting, "b", "step") == [Copies(state=True), Copies(version=1, state=True)]

    asyncio.run(scenario())


@pytest.mark.parametrize("dies_copying", [False, True])
def test_survivors_copy_after_a_step_that_one_of_them_had_completed(dies_copying: bool) -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b", "c").formed()
        setting.fleet["a"].kill()
        for survivor in ("b", "c"):
            setting.fleet[survivor].answers |= {
                "step": WorkerFailedError("all-gather failed"),
                "join_training": Joined(num_steps=1),
                "last_metrics": {"loss": 3.0},
            }

        def killed(_: Copies) -> None:
            setting.fleet["b"].kill()
            raise RayActorError()

        if dies_copying:
            setting.fleet["b"].answers["copy_between_steps"] = killed
        done = await setting.group.step(BATCH, BOTH)
        whole, state = Copies(version=1, state=True), Copies(state=True)
        assert of(done) == ({"c": whole} if dies_copying else {"b": whole, "c": state})
        assert asked(setting, "c", "copy_between_steps") == ([state, whole] if dies_copying else [state])

    asyncio.run(scenario())


def test_weights_of_a_step_are_not_copied_once_the_group_has_stepped_on() -> None:
    async def scenario() -> None:
        setting = await Setting("a", "b").formed()
        await setting.group.step(BATCH)
        (copy,) = await setting.group.copy(GroupCopies(version=1), at_step=1)
        assert (copy.slot_id, copy.copies) == ("a", Copies(version=1))
        await setting.group.step(BATCH)
        assert await setting.group.copy(GroupCopies(version=1), at_step=1) == ()
        assert asked(setting, "a", "copy_between_steps") == [Copies(version=1)]
        assert asked(setting, "b", "copy_between_steps") == [], "it has nothing to copy"

    asyncio.run(scenario())
