"""Replicas with fake workers: joining, leaving, being lost, and versions that come in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from controller_fakes import (
    FakeClock,
    FakeFleet,
    FakeReplica,
    make_gang,
    recorded,
    run_context,
    settled,
    unfinished,
)
from virtual_time import run_virtual

from rlserve.controller.canary import CanaryWatch
from rlserve.controller.events import ReplicaHeard, RequestAnswered, RequestsReturned, RequestsStarted, WorkerLost
from rlserve.controller.gang_book import GangBook
from rlserve.controller.replicas import Replicas
from rlserve.controller.request_desk import RequestDesk
from rlserve.controller.suspicion import Suspicion
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_sync import WeightSync
from rlserve.engine.requests.request import RequestOutput, SamplingParams
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.manager.roles import Role
from rlserve.pool.base import MemoryChange
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.tracking.events import LostWorkEvent, RolePhaseEvent, WeightEvent
from rlserve.weights.offer import Receipt


class Setting:
    """Replicas over fake workers, with a real router."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        *slot_ids: str,
        request_timeout_s: float = 5.0,
        weights_timeout_s: float = 5.0,
    ) -> None:
        self.fleet = FakeFleet((*slot_ids, "trainer"), FakeReplica)
        self.router = Router()
        self.clock = FakeClock(0.0)
        self.context = run_context(tasks, self.clock)
        events = self.context.events
        self.answers = recorded(events, RequestAnswered)
        self.started = recorded(events, RequestsStarted)
        self.returned = recorded(events, RequestsReturned)
        self.losses = recorded(events, WorkerLost)
        self.deliveries = recorded(events, WeightEvent)
        fleet: Any = self.fleet
        self.trainers = TrainerGroup(self.context, fleet, switch_timeout_s=5.0, step_timeout_s=5.0, on_one_machine=True)
        canary = CanaryWatch(self.context, tolerance=0.1, timeout_s=5.0)
        self.weights = WeightSync(
            self.context, fleet, self.trainers, canary, timeout_s=weights_timeout_s, anchor_every=1
        )
        self.replicas = Replicas(
            self.context,
            fleet=fleet,
            router=self.router,
            weights=self.weights,
            capacity=4,
            switch_timeout_s=5.0,
            request_timeout_s=request_timeout_s,
        )
        self.desk = RequestDesk(self.context, self.router, self.replicas)
        self.request_timeout_s = request_timeout_s

    @property
    def outputs(self) -> list[str]:
        return [event.id.name for event in self.answers]

    @property
    def lost(self) -> list[str]:
        assert all(loss.role is Role.ROLLOUT for loss in self.losses)
        return [loss.slot_id for loss in self.losses]

    @property
    def delivered(self) -> list[tuple[str | None, int]]:
        return [(event.slot_id, event.version) for event in self.deliveries if event.slot_id is not None]

    async def begin(self) -> None:
        """There are weights to serve, of version 0."""
        await self.trainers.form([("trainer",)], None)
        await self.weights.publish(0)
        await self.weights.settled()
        self.fleet.log.clear()

    def worker(self, slot_id: str) -> FakeReplica:
        worker = self.fleet[slot_id]
        assert isinstance(worker, FakeReplica)
        return worker

    def submit(self, *group_ids: str, min_version: int = 0) -> None:
        for position, group_id in enumerate(group_ids):
            group = PromptGroup(
                id=group_id, position=position, row=position, prompt_text="", prompt_token_ids=(position,), answer=None
            )
            requests = TrainingRequests(sampling=SamplingParams(n=1), run_seed=0)
            self.router.submit(requests.of(group, min_version=min_version), time_s=self.clock.now())
        self.replicas.dispatch()

    def ask(self, *names: str) -> asyncio.Task[list[RequestOutput]]:
        """Requests outside the ledger."""
        specs = [
            RequestSpec(
                id=RequestId(kind=RequestKind.EVALUATION, name=name),
                prompt_token_ids=(1,),
                sampling=SamplingParams(),
                position=position,
                timeout_s=self.request_timeout_s,
            )
            for position, name in enumerate(names)
        ]
        return asyncio.create_task(self.desk.answers(specs))


def training_id(group_id: str) -> RequestId:
    return RequestId(kind=RequestKind.TRAINING, name=group_id)


def run(scenario: Callable[[Setting], Awaitable[None]], *slot_ids: str, **timeouts: float) -> None:
    """Run a scenario; every task that was spawned must end without an error."""

    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, *slot_ids, **timeouts)
            await setting.begin()
            await asyncio.wait_for(scenario(setting), 10)
            await setting.replicas.close()

    run_virtual(whole())


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
