"""Chains of an anchor and deltas: who is offered which links, and when a version is whole."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from controller_fakes import BATCH, STEPPED, settled, unfinished
from weight_sync_setting import Setting, gone, run, sent_part

from rlserve.errors import WeightsRefusedError
from rlserve.weights.offer import Holding, Receipt


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
            stepped.set_result(STEPPED)
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
