"""Versions on their way from trainers to replicas, beside the training: the invariants of ``weight_sync``."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from controller_fakes import BATCH, settled, unfinished
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weight_sync_setting import Setting, run, sent_part

from rlserve.errors import WeightsRefusedError, WorkerFailedError
from rlserve.weights.offer import Offer, Receipt


def test_the_training_waits_for_the_snapshot_alone() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t0"], "send_weights") as sent:
            await setting.step()
            await settled()
            assert setting.published == [0]
            await setting.trainers.step(BATCH)
            sent.set_result(sent_part("t0", 1))
            await setting.weights.settled()
        assert setting.versions("r0") == setting.versions("r1") == [1]
        methods = [method for slot_id, method in setting.fleet.log if slot_id == "t0"]
        assert methods == ["step", "send_weights", "step"]

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
