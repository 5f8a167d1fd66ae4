"""Replicas that are lost, or suspected of it: while they serve, join, leave or take a version."""

from __future__ import annotations

import asyncio

import pytest
from controller_fakes import make_gang, recorded, settled, unfinished
from replica_setting import Setting, run, training_id

from rlserve.controller.gang_book import GangBook
from rlserve.controller.suspicion import Suspicion
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.tracking.events import LostWorkEvent


def test_a_replica_that_is_lost_once_its_requests_have_moved_does_not_give_them_back_again() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0")
        await settled()
        await setting.replicas.join("b")
        with unfinished(setting.worker("a"), "rollout_ended"):
            leaving = asyncio.create_task(setting.replicas.leave("a"))
            await settled()
            setting.worker("a").kill()
            with pytest.raises(WorkerFailedError):
                await leaving
        setting.replicas.forget("a")
        assert [event.ids for event in setting.returned] == [(training_id("0:0"),)]
        assert list(setting.worker("b").held) == ["training/0:0#1"]
        setting.router.check_integrity()

    run(scenario, "a", "b")


def test_what_a_lost_replica_had_starts_over_elsewhere() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0")
        answer = setting.ask("x")
        await settled()
        await setting.replicas.join("b")
        setting.worker("a").kill()
        await settled()
        assert setting.lost == ["a"]
        assert sorted(setting.worker("b").held) == ["evaluation/x#1", "training/0:0#1"]
        setting.worker("b").finish("evaluation/x#1")
        (output,) = await answer
        assert output.request_id == "evaluation/x#1"

    run(scenario, "a", "b")


def test_what_a_lost_replica_had_made_and_not_answered_is_counted() -> None:
    async def scenario(setting: Setting) -> None:
        lost = recorded(setting.context.events, LostWorkEvent)
        await setting.replicas.join("a")
        setting.submit("0:0", "0:1")
        await settled()
        setting.worker("a").num_generated_tokens = 10
        setting.worker("a").finish("training/0:0#0")
        await settled()
        setting.worker("a").kill()
        await settled()
        assert [(event.slot_id, event.num_requests, event.num_tokens) for event in lost] == [("a", 1, 9)]

    run(scenario, "a")


def test_one_that_was_found_dead_elsewhere_is_lost_once() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        for _ in range(2):
            setting.replicas.lose("a", WorkerLostError("its process died"))
        await settled()
        assert setting.lost == ["a"]

    run(scenario, "a")


def test_a_replica_lost_while_it_joins_is_not_served_from() -> None:
    async def scenario(setting: Setting) -> None:
        take = setting.worker("a").answers["take_weights"]
        setting.worker("a").answers["take_weights"] = WorkerFailedError("no memory")
        with pytest.raises(WorkerFailedError):
            await setting.replicas.join("a")
        setting.worker("a").answers["take_weights"] = take
        assert setting.replicas.slot_ids == ()

        with unfinished(setting.worker("b"), "take_weights"):
            joining = asyncio.create_task(setting.replicas.join("b"))
            await settled()
            setting.worker("b").kill()
            with pytest.raises(WorkerFailedError):
                await joining
        assert setting.replicas.slot_ids == ()

    run(scenario, "a", "b")


def test_a_gang_with_a_suspect_is_given_nothing_until_all_its_workers_answer_again() -> None:
    async def scenario(setting: Setting) -> None:
        book = GangBook(setting.context, [make_gang("a", "follower"), make_gang("b")])
        Suspicion(setting.context.events, book, setting.replicas)
        for slot_id in ("a", "follower", "b"):
            book.workers.has_role(slot_id, "rollout")
        await setting.replicas.join("a")
        book.workers.suspected("follower", "gives no sign of life")
        book.workers.suspected("b", "no replica yet")
        setting.submit("0:0")
        await settled()
        assert setting.worker("a").held == {}
        book.workers.suspected("a", "gives no sign of life")
        book.workers.heard("follower")
        await settled()
        assert setting.worker("a").held == {}
        book.workers.heard("a")
        await settled()
        assert list(setting.worker("a").held) == ["training/0:0#0"]

    run(scenario, "a", "b")


def test_a_replica_that_is_lost_while_it_leaves() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.worker("a").answers["stop_rollout"] = lambda: setting.worker("a").kill() or ()
        with pytest.raises(WorkerFailedError):
            await setting.replicas.leave("a")
        setting.replicas.forget("a")
        assert setting.replicas.slot_ids == ()

    run(scenario, "a")


def test_a_replica_that_does_not_take_the_last_version_is_lost_by_name_and_nothing_waits_for_it() -> None:
    """The end of a run waits for every version under way: a replica that does not answer must not hold it up past the
    deadline."""

    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        await setting.replicas.join("b")
        with unfinished(setting.worker("b"), "take_weights"):
            await setting.weights.publish(1)
            await setting.weights.settled()
        assert setting.lost == ["b"]
        assert "the replica on b" in str(setting.losses[0].error)
        answer = setting.ask("x")
        await settled()
        setting.worker("a").finish("evaluation/x#0")
        assert len(await answer) == 1

    run(scenario, "a", "b", weights_timeout_s=0.01)
