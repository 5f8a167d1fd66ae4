"""Replicas with fake workers: joining, leaving, and versions that come in between."""

from __future__ import annotations

import asyncio
from typing import Any

from controller_fakes import recorded, settled, unfinished
from replica_setting import Setting, run, training_id

from rlserve.controller.events import ReplicaHeard
from rlserve.errors import WorkerFailedError
from rlserve.pool.base import MemoryChange
from rlserve.rollout.requests.base import RequestId, RequestKind
from rlserve.tracking.events import RolePhaseEvent
from rlserve.weights.offer import Receipt


def test_a_replica_serves_only_with_the_newest_weights() -> None:
    async def scenario(setting: Setting) -> None:
        setting.submit("0:0")
        await setting.replicas.join("a")
        await settled()
        methods = [method for _, method in setting.fleet.log]
        assert methods == ["take_weights", "submit"]
        assert [event.ids for event in setting.started] == [(training_id("0:0"),)]

    run(scenario, "a")


def test_a_version_published_while_a_replica_joins_reaches_it_before_it_is_in() -> None:
    async def scenario(setting: Setting) -> None:
        with unfinished(setting.worker("a"), "take_weights") as taken:
            joining = asyncio.create_task(setting.replicas.join("a"))
            await settled()
            await setting.weights.publish(1)
            await settled()
        taken.set_result(Receipt(version=0, fingerprint=0, load_s=0.0))
        await joining
        assert setting.delivered == [("a", 0), ("a", 1)]

    run(scenario, "a")


def test_the_router_knows_what_a_replica_serves_and_groups_that_wait_for_it_go_out() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0", min_version=1)
        await settled()
        assert setting.worker("a").held == {}
        await setting.weights.publish(1)
        await setting.weights.settled()
        await settled()
        assert list(setting.worker("a").held) == ["training/0:0#0"]

    run(scenario, "a")


def test_time_that_engines_computed_counts_also_of_replicas_that_left() -> None:
    async def scenario(setting: Setting) -> None:
        for slot_id, busy_s in (("a", 2.0), ("b", 5.0)):
            setting.worker(slot_id).busy_s = busy_s
            await setting.replicas.join(slot_id)
            await settled()
            setting.worker(slot_id).changed.set()  # ends its poll
            await settled()
        assert setting.replicas.busy_s == 7.0
        await setting.replicas.leave("a")
        assert setting.replicas.busy_s == 7.0

    run(scenario, "a", "b")


def test_when_a_replica_began_to_serve_is_told_on_the_clock_of_the_run() -> None:
    async def scenario(setting: Setting) -> None:
        heard = recorded(setting.context.events, ReplicaHeard)
        setting.clock.now_s = 1000.0
        setting.clock.dilate(0.5)
        setting.clock.now_s += 10.0
        await setting.replicas.join("a")
        await settled()
        setting.worker("a").changed.set()
        await settled()
        assert {event.since_s for event in heard} == {1000.0 + 10.0 / 0.5}

    run(scenario, "a")


def test_what_a_leaving_replica_had_goes_on_elsewhere_with_its_tokens() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0", "0:1")
        answer = setting.ask("x")
        await settled()
        await setting.replicas.join("b")
        await setting.replicas.leave("a")
        await settled()
        taken = setting.worker("b").held
        assert sorted(taken) == ["evaluation/x#1", "training/0:0#1", "training/0:1#1"]
        assert all(request.resumed[0].token_ids == (7,) for request in taken.values())
        assert [set(event.ids) for event in setting.returned] == [
            {training_id("0:0"), training_id("0:1"), RequestId(kind=RequestKind.EVALUATION, name="x")}
        ]
        for request_id in list(taken):
            setting.worker("b").finish(request_id)
        await answer
        await settled()
        assert sorted(setting.outputs) == ["0:0", "0:1", "x"]
        assert setting.fleet.log[-1][0] == "b"
        setting.router.check_integrity()

    run(scenario, "a", "b")


def test_requests_go_on_elsewhere_before_the_memory_of_their_replica_is_free() -> None:
    async def scenario(setting: Setting) -> None:
        phases = recorded(setting.context.events, RolePhaseEvent)
        await setting.replicas.join("a")
        setting.submit("0:0")
        await settled()
        await setting.replicas.join("b")
        setting.fleet.log.clear()
        with unfinished(setting.worker("a"), "rollout_ended") as freed:
            leaving = asyncio.create_task(setting.replicas.leave("a"))
            await settled()
            assert list(setting.worker("b").held) == ["training/0:0#1"]
            assert setting.replicas.slot_ids == ("b",)
            freed.set_result(MemoryChange(before_bytes=3, after_bytes=1))
            assert (await leaving).released_bytes == 2
        assert {method for slot_id, method in setting.fleet.log if slot_id == "b"} == {"submit"}, "no step has to wait"
        assert [(each.slot_id, each.phase) for each in phases] == [
            ("a", "engine_formed"),
            ("a", "weights_taken"),
            ("b", "engine_formed"),
            ("b", "weights_taken"),
            ("a", "requests_moved"),
            ("a", "memory_released"),
        ]

    run(scenario, "a", "b")


def test_the_first_token_is_noted_once_when_it_was_made() -> None:
    async def scenario(setting: Setting) -> None:
        phases = recorded(setting.context.events, RolePhaseEvent)
        await setting.replicas.join("a")
        await settled()
        setting.clock.now_s = 50.0
        for ago_s in (None, 2.0, 9.0):
            setting.worker("a").first_token_ago_s = ago_s
            setting.worker("a").changed.set()  # ends its poll
            await settled()
        assert [each.time_s for each in phases if each.phase == "first_token"] == [48.0]

    run(scenario, "a")


def test_nothing_is_given_to_a_replica_that_leaves() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        worker = setting.worker("a")
        stop: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        worker.answers["stop_rollout"] = stop
        leaving = asyncio.create_task(setting.replicas.leave("a"))
        await settled()
        setting.submit("0:0")
        answer = setting.ask("x")
        await settled()
        assert worker.held == {}
        worker.closed = True
        worker.changed.set()
        stop.set_result(())
        await leaving
        await setting.replicas.join("b")
        await settled()
        setting.worker("b").finish("evaluation/x#0")
        await answer
        assert setting.lost == []

    run(scenario, "a", "b")


def test_a_version_under_way_to_a_replica_that_leaves_is_no_matter() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        with unfinished(setting.worker("a"), "take_weights") as taken:
            await setting.weights.publish(1)
            await settled()
            await setting.replicas.leave("a")
            taken.set_exception(WorkerFailedError("the rollout role was given up before the call ran"))
            await settled()
        assert setting.lost == []
        assert setting.delivered == [("a", 0)]

    run(scenario, "a")
