"""Weights that are spread over the trainers: each copies and sends its part, and all parts are one version."""

from __future__ import annotations

import asyncio

import pytest
from controller_fakes import STEPPED, settled, unfinished
from weight_sync_setting import Setting, run, sent_part

from rlserve.errors import StateLostError
from rlserve.weights.offer import Holding, Offer, SentPart


def test_every_trainer_sends_its_part_and_replicas_are_offered_one_version_of_all() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.step_and_settle()
        assert setting.senders() == [("t0", 1), ("t1", 1)]
        offers, *cargo = setting.fleet["r1"].arguments["take_weights"][-1]
        assert offers == (Offer(version=1, parts=(sent_part("t0", 1), sent_part("t1", 1))),)
        assert cargo == ["version 1 from t0", "version 1 from t1"]
        assert setting.versions("r0") == setting.versions("r1") == [1]
        assert setting.weights.metrics()["weights/sent_bytes"] == 16

    run(scenario, weights_are_spread=True)


def test_training_waits_until_all_have_copied_and_for_no_one_who_sends() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t1"], "step") as copied:
            stepping = asyncio.ensure_future(setting.step())
            await settled()
            assert not stepping.done()
            setting.snapshots["t1", 1] = 1
            copied.set_result(STEPPED)
            await stepping
        with unfinished(setting.fleet["t0"], "send_weights") as sent:
            await setting.step()
            sent.set_result(sent_part("t0", setting.snapshots.pop(("t0", 2))))
            await setting.weights.settled()
        assert setting.versions("r0") == [1, 2]

    run(scenario, weights_are_spread=True)


def test_each_is_asked_for_what_changed_since_its_own_part_and_some_may_send_it_whole() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.step_and_settle()
        usual = setting.fleet["t1"].answers["send_weights"]

        def send_whole(version: int, base: Holding, needed: list[int]) -> SentPart:
            usual(version, base, needed)
            return sent_part("t1", version)

        setting.fleet["t1"].answers["send_weights"] = send_whole
        await setting.step_and_settle()
        mixed = setting.offers("r0")[-1]
        assert [part.base for part in mixed.parts] == [Holding(version=1, fingerprint=1), None]
        assert mixed.base == Holding(version=1, fingerprint=2), "a replica needs all of version 1"
        setting.fleet["t1"].answers["send_weights"] = usual
        await setting.step_and_settle()
        bases = [setting.fleet[slot_id].arguments["send_weights"][-1][1] for slot_id in ("t0", "t1")]
        assert bases == [Holding(version=2, fingerprint=2)] * 2
        assert setting.chains("r0")[1:] == [[-1], [-2], [-3]]
        assert setting.held["r0"] == setting.held["r1"] == Holding(version=3, fingerprint=6)

    run(scenario, anchor_every=10, weights_are_spread=True)


def test_all_drop_what_is_superseded() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t1"], "send_weights") as sent:
            for _ in range(3):
                await setting.step()
                await settled()
            assert sorted(setting.snapshots) == [("t0", 3), ("t1", 1), ("t1", 3)], "2 is dropped"
        sent.set_result(sent_part("t1", setting.snapshots.pop(("t1", 1))))
        await setting.weights.settled()
        assert setting.published == [0, 1, 3]
        assert setting.snapshots == {}

    run(scenario, weights_are_spread=True)


def test_a_sender_that_is_lost_takes_a_part_of_the_state_along_which_ends_the_run() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t1"], "send_weights"):
            await setting.step()
            await settled()
            setting.fleet["t0"].answers["join_training"] = StateLostError("rank 1 of 2 is not there any more")
            setting.fleet["t1"].kill()
            await setting.weights.settled()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario, weights_are_spread=True)
    assert caught.group_contains(StateLostError, match=r"rank 1 of 2 .*\(t1 lost\): continue with --resume")


def test_a_sender_that_is_lost_after_it_left_the_trainers_lets_those_that_stayed_send_all_parts_again() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.fleet["t1"], "send_weights"):
            await setting.step()
            await settled()
            assert await setting.trainers.remove(("t1",), on_leaving=lambda: None)
            setting.fleet["t1"].kill()
            await setting.weights.settled()
        assert setting.senders() == [("t0", 1), ("t0", 1), ("t1", 1)]
        assert [part.sender for part in setting.offers("r0")[-1].parts] == ["t0"]
        assert setting.versions("r0") == setting.versions("r1") == [1]
        assert setting.lost == [], "whoever watches over its next role reports it"

    run(scenario, weights_are_spread=True)


def test_the_end_of_a_run_waits_for_nobody_who_sends() -> None:
    async def scenario(setting: Setting) -> None:
        before = asyncio.all_tasks()
        with unfinished(setting.fleet["t0"], "send_weights"), unfinished(setting.fleet["t1"], "send_weights"):
            await setting.step()
            await settled()
            await setting.weights.close()
            await settled()
            assert asyncio.all_tasks() == before

    run(scenario, weights_are_spread=True)
