"""Versions on their way from trainers to replicas, beside the training: the invariants of ``weight_sync``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from controller_fakes import FakeClock, FakeFleet, recorded, run_context, settled, unfinished
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ObjectLostError, RayTaskError

from rlserve.controller.events import WeightsNotTaken, WeightsTaken, WorkerLost
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_sync import WeightSync
from rlserve.errors import DeadlineExceededError, WeightsRefusedError, WorkerFailedError
from rlserve.tracking.events import WeightEvent
from rlserve.weights.offer import Offer, Receipt, SentPart

BATCH: Any = SimpleNamespace(token_ids=(1, 2, 3))


class Setting:
    """Trainers ``t0``, ``t1`` and replicas ``r0``, ``r1`` that hold version 0. Fingerprints are numbers of steps, so
    weights of another step under a version's number are found."""

    def __init__(self, tasks: asyncio.TaskGroup, *, timeout_s: float = 5.0) -> None:
        self.fleet = FakeFleet(("t0", "t1", "r0", "r1"))
        self.clock = FakeClock(0.0)
        self.context = run_context(tasks, self.clock)
        events, fleet = self.context.events, self.fleet
        self.lost = recorded(events, WorkerLost)
        self.taken = recorded(events, WeightsTaken)
        self.not_taken = recorded(events, WeightsNotTaken)
        self.noted = recorded(events, WeightEvent)
        outside: Any = fleet
        self.trainers = TrainerGroup(
            self.context, outside, switch_timeout_s=5.0, step_timeout_s=5.0, on_one_machine=True
        )
        self.weights = WeightSync(self.context, outside, self.trainers, timeout_s=timeout_s)
        self.snapshots: dict[tuple[str, int], int] = {}
        """(slot, version) → steps that the trainers had done when it was copied."""
        for slot_id in ("t0", "t1"):
            self._hold_snapshots(slot_id)

    def _hold_snapshots(self, slot_id: str) -> None:
        def snapshot(version: int) -> None:
            self.snapshots[slot_id, version] = self.trainers.num_steps

        def send(version: int, needed: list[int]) -> SentPart:
            return SentPart(sender=slot_id, num_bytes=8, fingerprint=self.snapshots.pop((slot_id, version)))

        def drop(version: int) -> None:
            del self.snapshots[slot_id, version]

        self.fleet[slot_id].answers |= {
            "join_training": lambda *_: self.trainers.num_steps,
            "snapshot_weights": snapshot,
            "send_weights": send,
            "drop_snapshot": drop,
        }

    async def begin(self) -> None:
        await self.trainers.form([("t0",), ("t1",)], None)
        await self.weights.publish(0)
        await self.weights.settled()
        for slot_id in ("r0", "r1"):
            await self.weights.add(slot_id, await self.weights.take(slot_id))
        self.fleet.log.clear()

    async def step(self) -> None:
        """A step of the trainers, and its snapshot."""
        await self.trainers.step(BATCH)
        await self.weights.publish(self.trainers.num_steps)

    def offers(self, slot_id: str) -> list[Offer]:
        return [arguments[0] for arguments in self.fleet[slot_id].arguments.get("take_weights", [])]

    def versions(self, slot_id: str) -> list[int]:
        """What a replica has taken after version 0."""
        return [event.version for event in self.taken if event.slot_id == slot_id]

    @property
    def published(self) -> list[int]:
        return [event.version for event in self.noted if event.slot_id is None]

    def senders(self) -> list[tuple[str, int]]:
        """Who was asked to send which version after 0."""
        calls = [
            (slot_id, version)
            for slot_id in ("t0", "t1")
            for version, _ in self.fleet[slot_id].arguments.get("send_weights", [])
        ]
        return sorted((call for call in calls if call[1] > 0), key=lambda call: call[1])


def run(scenario: Callable[[Setting], Awaitable[None]], **options: float) -> None:
    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, **options)
            await setting.begin()
            await asyncio.wait_for(scenario(setting), 10)

    asyncio.run(whole())


def test_the_training_waits_for_the_snapshot_alone() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights") as sent:
            await setting.step()
            assert setting.published == [0]
            await setting.trainers.step(BATCH)
            sent.set_result(SentPart(sender="t0", num_bytes=8, fingerprint=1))
            await setting.weights.settled()
        assert setting.versions("r0") == setting.versions("r1") == [1]
        methods = [method for slot_id, method in setting.fleet.log if slot_id == "t0"]
        assert methods == ["step", "snapshot_weights", "send_weights", "step"]

    run(scenario)


def test_a_replica_is_offered_what_was_sent_and_its_cargo() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.step()
        await setting.weights.settled()
        offer, *cargo = setting.fleet["r1"].arguments["take_weights"][-1]
        assert offer == Offer(version=1, parts=(SentPart(sender="t0", num_bytes=8, fingerprint=1),))
        assert cargo == ["version 1 from t0"]

    run(scenario)


def test_versions_that_come_while_one_is_sent_are_skipped_but_for_the_newest() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights") as sent:
            for _ in range(4):
                await setting.step()
                await settled()
            assert sorted(version for _, version in setting.snapshots) == [1, 4], "2 and 3 are dropped"
        sent.set_result(SentPart(sender="t0", num_bytes=8, fingerprint=setting.snapshots.pop(("t0", 1))))
        await setting.weights.settled()
        assert setting.published == [0, 1, 4]
        assert setting.versions("r0")[-1] == 4, "by way of 1, if it was quick"
        assert setting.snapshots == {}

    run(scenario)


def test_a_slow_replica_skips_what_was_superseded_and_holds_up_no_other() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r1"], "take_weights") as taken:
            for _ in range(3):
                await setting.step()
                await settled()
            assert setting.versions("r0") == [1, 2, 3]
            needed = [call[1] for call in setting.fleet["t0"].arguments["send_weights"]]
            assert needed[-1] == [1, 2], "what r1 is taking is kept, and what could be taken until now"
        taken.set_result(Receipt(version=1, fingerprint=1, load_s=0.0))
        await setting.weights.settled()
        assert setting.versions("r1") == [1, 3]

    run(scenario)


def test_the_version_of_a_lost_sender_is_sent_by_another_that_has_not_stepped() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights"):
            await setting.step()
            await settled()
            setting.fleet["t0"].kill()
            await setting.weights.settled()
        assert [loss.slot_id for loss in setting.lost] == ["t0"]
        assert setting.senders() == [("t0", 1), ("t1", 1)]
        assert setting.versions("r0") == setting.versions("r1") == [1]
        assert setting.offers("r0")[-1].fingerprint == 1

    run(scenario)


def test_a_sender_that_does_not_answer_in_time_is_lost_and_another_sends() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights"):
            await setting.step()
            await setting.weights.settled()
        assert [(loss.slot_id, "no answer for 0.01 s" in str(loss.error)) for loss in setting.lost] == [("t0", True)]
        assert setting.trainers.members == ("t1",)
        assert setting.versions("r0") == [1]

    run(scenario, timeout_s=0.01)


def test_once_the_group_has_stepped_the_next_version_comes_in_place_of_a_lost_one() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t1"], "step") as stepped, unfinished(setting.fleet["t0"], "send_weights"):
            stepped.set_result({"loss": 1.0})
            await setting.step()
            await settled()
        with unfinished(setting.fleet["t1"], "step") as stepped:
            step = asyncio.create_task(setting.step())
            await settled()
            setting.fleet["t0"].kill()
            await settled()
            assert setting.published == [0], "a step is under way: nobody may copy the weights"
            setting.fleet["t1"].answers["step"] = {"loss": 2.0}
            stepped.set_result({"loss": 2.0})
            await step
        await setting.weights.settled()
        assert setting.published == [0, 2]
        assert setting.senders() == [("t0", 1), ("t1", 2)]
        assert setting.versions("r0") == [2]
        assert setting.offers("r0")[-1].fingerprint == 2

    run(scenario)


def test_a_sender_that_left_the_trainers_still_sends() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights") as sent:
            await setting.step()
            await setting.trainers.remove(("t0",), on_leaving=lambda: None)
            sent.set_result(SentPart(sender="t0", num_bytes=8, fingerprint=1))
            await setting.weights.settled()
        assert setting.versions("r0") == [1]
        assert setting.lost == []

    run(scenario)


def gone(what: str) -> RayTaskError:
    return RayTaskError(what, "traceback", ObjectLostError("00", None, ""))


def test_what_is_gone_with_its_sender_is_sent_again_once_and_no_receiver_is_blamed() -> None:
    async def scenario(setting: Setting) -> None:
        with (
            unfinished(setting.fleet["r0"], "take_weights") as r0,
            unfinished(setting.fleet["r1"], "take_weights") as r1,
        ):
            await setting.step()
            await settled()
            setting.fleet["t0"].kill()
        for taken in (r0, r1):
            taken.set_exception(gone("take_weights"))
        await setting.weights.settled()
        assert setting.senders() == [("t0", 1), ("t1", 1)]
        assert setting.versions("r0") == setting.versions("r1") == [1]
        assert setting.fleet["r0"].arguments["take_weights"][-1][1] == "version 1 from t1"
        assert setting.not_taken == []

    run(scenario)


def test_what_is_gone_and_held_by_nobody_is_waited_for_as_the_next_version() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r0"], "take_weights") as first:
            await setting.step()
            await settled()
            await setting.trainers.step(BATCH)
            first.set_exception(gone("take_weights"))
            await settled()
        assert setting.versions("r0") == []
        await setting.weights.publish(2)
        await setting.weights.settled()
        assert setting.senders() == [("t0", 1), ("t0", 2)]
        assert setting.versions("r0") == [2]

    run(scenario)


def test_a_version_that_is_sent_again_too_late_is_offered_to_nobody() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r0"], "take_weights") as first:
            await setting.step()
            await settled()
        with unfinished(setting.fleet["t0"], "send_weights") as again:
            first.set_exception(gone("take_weights"))
            await settled()
        await setting.step()
        await settled()
        again.set_result(SentPart(sender="t0", num_bytes=8, fingerprint=1))
        await setting.weights.settled()
        assert setting.senders() == [("t0", 1), ("t0", 1), ("t0", 2)]
        assert setting.published == [0, 1, 2]
        assert setting.versions("r0") == [2]

    run(scenario)


def test_a_next_version_that_does_not_come_has_a_deadline() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r0"], "take_weights") as first:
            await setting.step()
            await settled()
            await setting.trainers.step(BATCH)
            first.set_exception(gone("take_weights"))
            await setting.weights.settled()
        (failure,) = setting.not_taken
        assert isinstance(failure.error, DeadlineExceededError)
        assert "version 1 of the weights is gone" in str(failure.error)

    run(scenario, timeout_s=0.01)


def test_another_fingerprint_for_the_same_version_stops_the_run() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["r0"].answers["take_weights"] = gone("take_weights")
        setting.fleet["t0"].answers["send_weights"] = lambda version, needed: SentPart(
            sender="t0", num_bytes=8, fingerprint=len(setting.senders())
        )
        await setting.step()
        await setting.weights.settled()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario)
    assert caught.group_contains(WeightsRefusedError, match="version 1 published again has fingerprint 0*2, not 0*1")


@pytest.mark.parametrize(
    "found",
    [
        WeightsRefusedError("wrong checksum"),
        lambda offer, cargo: Receipt(version=offer.version, fingerprint=99, load_s=0.0),
        lambda offer, cargo: Receipt(version=0, fingerprint=offer.fingerprint, load_s=0.0),
    ],
)
def test_a_replica_that_holds_something_else_than_was_published_stops_the_run(found: Any) -> None:
    """Nothing that it says can be trusted."""

    async def scenario(setting: Setting) -> None:
        setting.fleet["r0"].answers["take_weights"] = found
        await setting.step()
        await setting.weights.settled()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario)
    assert caught.group_contains(WeightsRefusedError)


def test_a_replica_that_fails_is_reported_once_and_offered_nothing_more() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["r0"].answers["take_weights"] = WorkerFailedError("the engine stopped")
        for _ in range(2):
            await setting.step()
            await setting.weights.settled()
        assert [failure.slot_id for failure in setting.not_taken] == ["r0"]
        assert setting.versions("r1") == [1, 2]

    run(scenario)


def test_a_sender_that_fails_without_being_lost_stops_the_run() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["t0"].answers["send_weights"] = WorkerFailedError("No space left on device")
        await setting.step()
        await setting.weights.settled()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario)
    assert caught.group_contains(WorkerFailedError, match="No space left")


def test_time_under_way_is_counted_once_however_much_is_under_way() -> None:
    async def scenario(setting: Setting) -> None:
        before = setting.weights.busy_s
        with unfinished(setting.fleet["r0"], "take_weights") as taken, unfinished(setting.fleet["r1"], "take_weights"):
            await setting.step()
            await settled()
            setting.clock.now_s += 2.0
            assert setting.weights.busy_s - before == 2.0
            setting.weights.remove("r1")
            taken.set_result(Receipt(version=1, fingerprint=1, load_s=0.5))
            await settled()
            setting.fleet["r1"].kill()
            await settled()
        setting.clock.now_s += 5.0
        assert setting.weights.busy_s - before == 2.0
        assert setting.weights.metrics()["weights/swap_s"] == 2.0
        assert setting.weights.metrics()["weights/load_s"] == 0.5

    run(scenario)


def test_what_was_sent_is_removed_in_the_end_and_nothing_is_left_under_way() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r0"], "take_weights"):
            await setting.step()
            await settled()
            await setting.weights.close()
        assert setting.fleet.log[-1] == ("t0", "discard_weights")
        await setting.weights.settled()

    run(scenario)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_every_replica_that_stays_ends_with_the_newest_version(seed: int) -> None:
    """Steps, senders lost in the middle, replicas that are slow, leave or come: the invariants hold."""
    chance = random.Random(seed)

    async def scenario(setting: Setting) -> None:
        for slot_id in setting.fleet.workers:
            _yield_before_each_answer(setting, slot_id, chance)
        can_kill = True
        for _ in range(8):
            match chance.randrange(5):
                case 0 if can_kill:
                    setting.fleet[chance.choice(("t0", "t1"))].kill()
                    can_kill = False
                case 1:
                    setting.weights.remove("r1")
                    await setting.weights.add("r1", await setting.weights.take("r1"))
                case _:
                    await setting.step()
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
        await setting.weights.settled()
        newest = setting.trainers.num_steps
        assert setting.weights.version == newest
        assert setting.snapshots.keys() <= {(loss.slot_id, version) for loss in setting.lost for version in range(9)}
        for slot_id in ("r0", "r1"):
            assert all(offer.fingerprint == offer.version for offer in setting.offers(slot_id))
            versions = setting.versions(slot_id)
            assert versions == sorted(set(versions))
            assert {*versions} <= {*setting.published}
            assert setting.offers(slot_id)[-1].version == newest
        assert setting.not_taken == []
        assert setting.published == sorted(setting.published)

    run(scenario)


def _yield_before_each_answer(setting: Setting, slot_id: str, chance: random.Random) -> None:
    """Let other tasks run for a while before each answer of a worker."""
    worker: Any = setting.fleet[slot_id]
    call = worker.call

    async def slow_call(method: str, arguments: tuple[Any, ...]) -> Any:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        return await call(method, arguments)

    worker.call = slow_call
