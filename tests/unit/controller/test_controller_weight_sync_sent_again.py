"""Versions whose sender, or cargo, is lost on the way: another sends them, or the next comes in their place."""

from __future__ import annotations

import asyncio

import pytest
from controller_fakes import BATCH, STEPPED, settled, unfinished
from weight_sync_setting import Setting, gone, run, sent_part

from rlserve.errors import DeadlineExceededError, WeightsRefusedError


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
            stepped.set_result(STEPPED)
            await setting.step()
            await settled()
        steps = setting.fleet["t1"].answers["step"]
        with unfinished(setting.fleet["t1"], "step") as stepped:
            step = asyncio.create_task(setting.step())
            await settled()
            setting.fleet["t0"].kill()
            await settled()
            assert setting.published == [0], "a step is under way: nobody may copy the weights"
            setting.fleet["t1"].answers["step"] = steps
            stepped.set_result(STEPPED)
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
