"""Requests of replicas: those that are withdrawn, wait, come too late or do not get on."""

from __future__ import annotations

import asyncio

from controller_fakes import settled, unfinished
from replica_setting import Setting, run, training_id

from rlserve.rollout.requests.base import RequestKind


def test_replicas_are_told_of_requests_that_nobody_waits_for_any_more() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0", "0:1")
        await settled()
        setting.submit("0:2", min_version=1)  # which waits
        answer = setting.ask("x")
        await settled()
        setting.replicas.withdraw([training_id("0:1"), training_id("0:2"), training_id("0:9")])
        answer.cancel()
        await settled()
        assert sorted(setting.worker("a").held) == ["training/0:0#0"]
        assert setting.outputs == [], "what came out of the withdrawn ones is passed over"
        setting.worker("a").finish("training/0:0#0")
        await settled()
        assert sorted(setting.outputs) == ["0:0"]
        setting.router.check_integrity()

    run(scenario, "a")


def test_a_replica_that_leaves_is_told_of_no_withdrawn_request() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0")
        await settled()
        with unfinished(setting.worker("a"), "stop_rollout") as stopped:
            leaving = asyncio.create_task(setting.replicas.leave("a"))
            await settled()
            setting.replicas.withdraw([training_id("0:0")])
            stopped.set_result(())
            setting.worker("a").closed = True
            setting.worker("a").changed.set()
            await leaving
        assert "abort" not in [method for _, method in setting.fleet.log]
        assert setting.router.num_waiting(RequestKind.TRAINING) == 0

    run(scenario, "a")


def test_requests_wait_while_there_is_no_replica() -> None:
    async def scenario(setting: Setting) -> None:
        answer = setting.ask("x")
        await settled()
        await setting.replicas.join("a")
        await settled()
        setting.worker("a").finish("evaluation/x#0")
        await answer

    run(scenario, "a")


def test_an_answer_that_comes_too_late_is_passed_over() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0")
        await settled()
        setting.worker("a").finish("training/0:0#0")
        await settled()
        worker = setting.worker("a")
        worker.held["training/0:0#0"] = None
        worker.finish("training/0:0#0")
        await settled()
        assert setting.outputs == ["0:0"]

    run(scenario, "a")


def test_requests_outside_the_ledger_that_do_not_get_on_end_with_where_they_are() -> None:
    async def scenario(setting: Setting) -> None:
        waiting = setting.ask("0", "1")
        await settled()
        setting.clock.now_s = 6.0
        errors = [output.error for output in await waiting]
        where = "waiting for a replica with version 0 of the weights or a newer one"
        assert errors == [f"no progress for 6 s (rollout.request_timeout_s), {where}"] * 2
        await setting.replicas.join("a")
        held = setting.ask("0", "1")
        await settled()
        setting.worker("a").finish("evaluation/0#0")
        await settled()
        setting.clock.now_s = 18.0
        answered, stuck = await held
        assert (answered.error, stuck.error) == (None, "no progress for 12 s (rollout.request_timeout_s), with a")
        assert await setting.desk.answers([]) == []
        setting.router.check_integrity()

    run(scenario, "a")


def test_requests_of_whoever_is_cancelled_are_taken_back() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        asked = setting.ask(*"01234567")
        await settled()
        assert setting.router.num_waiting(RequestKind.EVALUATION) == 4
        asked.cancel()
        await settled()
        assert setting.router.num_waiting(RequestKind.EVALUATION) == 0
        setting.submit("0:0")
        await settled()
        assert list(setting.worker("a").held) == ["training/0:0#0"], "and no replica computes them any longer"
        assert setting.answers == []

    run(scenario, "a")
