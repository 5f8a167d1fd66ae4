"""Versions on their way from trainers to replicas, beside the training: the invariants of ``weight_sync``."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from controller_fakes import FakeClock, FakeFleet, recorded, run_context, settled, unfinished
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ray.exceptions import ObjectLostError, RayTaskError

from rlserve.controller.canary import CanaryWatch
from rlserve.controller.events import WeightsNotTaken, WeightsTaken, WorkerLost
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_sync import WeightSync
from rlserve.errors import DeadlineExceededError, WeightsRefusedError, WorkerFailedError
from rlserve.tracking.events import WeightEvent
from rlserve.weights.canary import CanaryScores
from rlserve.weights.offer import Holding, Offer, Receipt, SentPart

BATCH: Any = SimpleNamespace(token_ids=(1, 2, 3))


class Setting:
    """Trainers ``t0``, ``t1`` and replicas ``r0``, ``r1`` that hold version 0. Fingerprints are numbers of steps, so
    weights of another step under a version's number are found."""

    def __init__(self, tasks: asyncio.TaskGroup, *, timeout_s: float = 5.0, anchor_every: int = 1) -> None:
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
        canary = CanaryWatch(self.context, tolerance=0.1, timeout_s=timeout_s)
        self.weights = WeightSync(
            self.context, outside, self.trainers, canary, timeout_s=timeout_s, anchor_every=anchor_every
        )
        self.snapshots: dict[tuple[str, int], int] = {}
        """(slot, version) → steps that the trainers had done when it was copied."""
        self.expected: CanaryScores = ()
        """What trainers make of the canary of the next version."""
        self.held: dict[str, Holding] = {}
        """What each replica can apply a delta to."""
        for slot_id in ("t0", "t1"):
            self._hold_snapshots(slot_id)
        for slot_id in ("r0", "r1"):
            self.fleet[slot_id].answers["take_weights"] = functools.partial(self._take, slot_id)

    def _take(self, slot_id: str, offers: tuple[Offer, ...], *cargo: str) -> Receipt:
        assert len(cargo) == len(offers)
        for offer in offers:
            if offer.base is not None and self.held.get(slot_id) != offer.base:
                raise WeightsRefusedError(f"{slot_id} does not have {offer.base}")
            self.held[slot_id] = offer.holding
        return Receipt(version=offers[-1].version, fingerprint=offers[-1].fingerprint, load_s=0.0)

    def _hold_snapshots(self, slot_id: str) -> None:
        last: list[Holding] = []

        def snapshot(version: int) -> CanaryScores:
            self.snapshots[slot_id, version] = self.trainers.num_steps
            return self.expected

        def send(version: int, base: Holding | None, needed: list[int]) -> SentPart:
            fingerprint = self.snapshots.pop((slot_id, version))
            known = base if base in last else None
            last[:] = [Holding(version=version, fingerprint=fingerprint)]
            return sent_part(slot_id, fingerprint, base=known)

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

    async def step_and_settle(self) -> None:
        """A step whose version gets to everyone before anything else happens."""
        await self.step()
        await self.weights.settled()

    def chains(self, slot_id: str) -> list[list[int]]:
        """Versions of the links that a replica was offered, call by call; a delta's is negative."""
        calls = self.fleet[slot_id].arguments.get("take_weights", [])
        return [[offer.version if offer.base is None else -offer.version for offer in call[0]] for call in calls]

    def offers(self, slot_id: str) -> list[Offer]:
        """The last link of each call."""
        return [arguments[0][-1] for arguments in self.fleet[slot_id].arguments.get("take_weights", [])]

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
            for version, _, _ in self.fleet[slot_id].arguments.get("send_weights", [])
        ]
        return sorted((call for call in calls if call[1] > 0), key=lambda call: call[1])


def sent_part(slot_id: str, fingerprint: int, base: Holding | None = None) -> SentPart:
    num_bytes = 8 if base is None else 1
    return SentPart(sender=slot_id, num_bytes=num_bytes, num_whole_bytes=8, fingerprint=fingerprint, base=base)


def run(scenario: Callable[[Setting], Awaitable[None]], **options: Any) -> None:
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
            sent.set_result(sent_part("t0", 1))
            await setting.weights.settled()
        assert setting.versions("r0") == setting.versions("r1") == [1]
        methods = [method for slot_id, method in setting.fleet.log if slot_id == "t0"]
        assert methods == ["step", "snapshot_weights", "send_weights", "step"]

    run(scenario)


def test_a_replica_is_offered_what_was_sent_and_its_cargo() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.step_and_settle()
        offers, *cargo = setting.fleet["r1"].arguments["take_weights"][-1]
        assert offers == (Offer(version=1, parts=(sent_part("t0", 1),)),)
        assert cargo == ["version 1 from t0"]

    run(scenario)


def test_versions_that_come_while_one_is_sent_are_skipped_but_for_the_newest() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights") as sent:
            for _ in range(4):
                await setting.step()
                await settled()
            assert sorted(version for _, version in setting.snapshots) == [1, 4], "2 and 3 are dropped"
        sent.set_result(sent_part("t0", setting.snapshots.pop(("t0", 1))))
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
            needed = [call[2] for call in setting.fleet["t0"].arguments["send_weights"]]
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
            await setting.step_and_settle()
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
            sent.set_result(sent_part("t0", 1))
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
        again.set_result(sent_part("t0", 1))
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
        assert "version 1 of the weights cannot be taken" in str(failure.error)

    run(scenario, timeout_s=0.25)


def test_another_fingerprint_for_the_same_version_stops_the_run() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["r0"].answers["take_weights"] = gone("take_weights")
        setting.fleet["t0"].answers["send_weights"] = lambda version, base, needed: sent_part(
            "t0", len(setting.senders())
        )
        await setting.step_and_settle()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario)
    assert caught.group_contains(WeightsRefusedError, match="version 1 published again has fingerprint 0*2, not 0*1")


@pytest.mark.parametrize(
    "found",
    [
        WeightsRefusedError("wrong checksum"),
        lambda offers, cargo: Receipt(version=offers[0].version, fingerprint=99, load_s=0.0),
        lambda offers, cargo: Receipt(version=0, fingerprint=offers[0].fingerprint, load_s=0.0),
    ],
)
def test_a_replica_that_holds_something_else_than_was_published_stops_the_run(found: Any) -> None:
    """Nothing that it says can be trusted."""

    async def scenario(setting: Setting) -> None:
        setting.fleet["r0"].answers["take_weights"] = found
        await setting.step_and_settle()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario)
    assert caught.group_contains(WeightsRefusedError)


def test_a_replica_that_fails_is_reported_once_and_offered_nothing_more() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["r0"].answers["take_weights"] = WorkerFailedError("the engine stopped")
        for _ in range(2):
            await setting.step_and_settle()
        assert [failure.slot_id for failure in setting.not_taken] == ["r0"]
        assert setting.versions("r1") == [1, 2]

    run(scenario)


def test_a_sender_that_fails_without_being_lost_stops_the_run() -> None:
    async def scenario(setting: Setting) -> None:
        setting.fleet["t0"].answers["send_weights"] = WorkerFailedError("No space left on device")
        await setting.step_and_settle()

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


def test_what_changed_is_taken_link_by_link_and_a_newcomer_takes_the_whole_chain() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r1"], "take_weights") as taken:
            for _ in range(3):
                await setting.step()
                await settled()
        setting.held["r1"] = Holding(version=1, fingerprint=1)
        taken.set_result(Receipt(version=1, fingerprint=1, load_s=0.0))
        await setting.weights.settled()
        assert setting.chains("r0")[1:] == [[-1], [-2], [-3]]
        assert setting.chains("r1")[1:] == [[-1], [-2, -3]], "in one call, loaded once"
        setting.weights.remove("r1")
        setting.held.clear()
        await setting.weights.add("r1", await setting.weights.take("r1"))
        assert setting.chains("r1")[3:] == [[0, -1, -2, -3]]
        needed = [call[2] for call in setting.fleet["t0"].arguments["send_weights"]]
        assert needed[-1] == [0, 1, 2], "all links may be needed yet"
        assert setting.weights.metrics()["weights/sent_bytes"] == 1
        assert setting.weights.metrics()["weights/whole_bytes"] == 8

    run(scenario, anchor_every=10)


def test_a_newcomer_in_mid_step_takes_anchor_and_deltas_while_no_trainer_and_no_other_is_asked_anything() -> None:
    async def scenario(setting: Setting) -> None:
        setting.weights.remove("r1")
        setting.held.pop("r1")
        for _ in range(2):
            await setting.step_and_settle()
        with unfinished(setting.fleet["t0"], "step") as stepped:
            stepping = asyncio.ensure_future(setting.trainers.step(BATCH))
            await settled()
            setting.fleet.log.clear()
            await setting.weights.add("r1", await setting.weights.take("r1"))
            assert not stepping.done()
            assert {slot_id for slot_id, _ in setting.fleet.log} == {"r1"}
            assert setting.chains("r1")[-1] == [0, -1, -2]
            stepped.set_result({})
        await stepping

    run(scenario, anchor_every=10)


def test_every_so_many_versions_one_is_whole() -> None:
    async def scenario(setting: Setting) -> None:
        for _ in range(7):
            await setting.step_and_settle()
        assert setting.chains("r0")[1:] == [[-1], [-2], [3], [-4], [-5], [6], [-7]]

    run(scenario, anchor_every=3)


def test_the_successor_of_a_lost_sender_sends_whole_and_then_what_changes() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.step_and_settle()
        with unfinished(setting.fleet["t0"], "send_weights"):
            await setting.step()
            await settled()
            setting.fleet["t0"].kill()
            await setting.weights.settled()
        await setting.step_and_settle()
        assert setting.chains("r0")[1:] == [[-1], [2], [-3]]

    run(scenario, anchor_every=10)


def test_versions_that_were_never_sent_leave_no_gap() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights") as sent:
            for _ in range(4):
                await setting.step()
                await settled()
        base = Holding(version=0, fingerprint=0)
        sent.set_result(sent_part("t0", setting.snapshots.pop(("t0", 1)), base=base))
        await setting.weights.settled()
        (first, again) = setting.fleet["t0"].arguments["send_weights"][-2:]
        assert (first[1], again[1]) == (base, Holding(version=1, fingerprint=1)), "4 is asked for on what was sent"

    run(scenario, anchor_every=10)


def test_one_that_cannot_build_on_what_it_has_gets_the_whole_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(setting: Setting) -> None:
        await setting.step_and_settle()
        del setting.held["r1"]
        with caplog.at_level(logging.WARNING):
            await setting.step_and_settle()
        assert setting.chains("r1")[1:] == [[-1], [-2], [2]]
        assert setting.versions("r0") == setting.versions("r1") == [1, 2]
        assert setting.senders() == [("t0", 1), ("t0", 2), ("t0", 2)]
        assert "the replica on r1 gets the weights whole: r1 does not have" in caplog.text
        assert setting.not_taken == []
        await setting.step_and_settle()
        assert setting.chains("r0")[-1] == setting.chains("r1")[-1] == [-3]

    run(scenario, anchor_every=10)


def test_one_that_refuses_what_is_superseded_already_gets_the_chain_from_its_anchor() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r1"], "take_weights") as taken:
            for _ in range(2):
                await setting.step()
                await settled()
        del setting.held["r1"]
        taken.set_exception(WeightsRefusedError("damaged"))
        await setting.weights.settled()
        assert setting.chains("r1")[1:] == [[-1], [0, -1, -2]]
        assert setting.versions("r1") == [2]
        assert setting.senders() == [("t0", 1), ("t0", 2)], "nothing is sent again"

    run(scenario, anchor_every=10)


def test_one_that_refuses_the_whole_too_stops_the_run() -> None:
    refusals: list[Any] = []

    async def scenario(setting: Setting) -> None:
        def refuse(offers: Any, *cargo: Any) -> None:
            refusals.append(offers[0].base)
            raise WeightsRefusedError("not these")

        setting.fleet["r0"].answers["take_weights"] = refuse
        await setting.step_and_settle()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario, anchor_every=10)
    assert caught.group_contains(WeightsRefusedError, match="not these")
    assert refusals == [Holding(version=0, fingerprint=0), None]


def test_a_link_that_is_gone_lets_its_version_be_sent_again_whole() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.step_and_settle()
        with unfinished(setting.fleet["r0"], "take_weights") as taken:
            await setting.step()
            await settled()
        taken.set_exception(gone("take_weights"))
        await setting.weights.settled()
        assert setting.chains("r0")[1:] == [[-1], [-2], [2]]
        assert setting.chains("r1")[1:] == [[-1], [-2]]
        await setting.step_and_settle()
        assert setting.chains("r1")[-1] == [-3], "on what was sent again: its bits are the same"

    run(scenario, anchor_every=10)


def test_a_link_that_is_gone_once_the_group_has_stepped_makes_the_next_version_whole() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["r0"], "take_weights") as first:
            await setting.step()
            await settled()
            await setting.trainers.step(BATCH)
            first.set_exception(gone("take_weights"))
            await settled()
        await setting.weights.publish(2)
        await setting.weights.settled()
        assert setting.chains("r0")[1:] == [[-1], [2]]
        assert setting.chains("r1")[1:] == [[-1], [2]]

    run(scenario, anchor_every=10)


@given(seed=st.integers(0, 2**32 - 1), anchor_every=st.sampled_from([1, 3, 10]))
@example(seed=329379712, anchor_every=3)  # a replica that has left refuses a version
@settings(max_examples=60, deadline=None)
def test_whatever_happens_every_replica_that_stays_ends_with_the_newest_version(seed: int, anchor_every: int) -> None:
    """Steps, senders lost in the middle, replicas that are slow, leave, come or forget, cargo that is gone: the
    invariants hold."""
    chance = random.Random(seed)

    async def scenario(setting: Setting) -> None:
        for slot_id in setting.fleet.workers:
            _yield_before_each_answer(setting, slot_id, chance)
        can_kill = True
        for _ in range(8):
            match chance.randrange(6):
                case 0 if can_kill:
                    setting.fleet[chance.choice(("t0", "t1"))].kill()
                    can_kill = False
                case 1:
                    setting.weights.remove("r1")
                    await setting.weights.add("r1", await setting.weights.take("r1"))
                case 2:
                    setting.held.pop("r0", None)
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

    run(scenario, anchor_every=anchor_every)


def _yield_before_each_answer(setting: Setting, slot_id: str, chance: random.Random) -> None:
    """Let other tasks run for a while before each answer of a worker."""
    worker: Any = setting.fleet[slot_id]
    call = worker.call

    async def slow_call(method: str, arguments: tuple[Any, ...]) -> Any:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        return await call(method, arguments)

    worker.call = slow_call
