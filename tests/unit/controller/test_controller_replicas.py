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
    FakeTransport,
    recorded,
    run_context,
    settled,
    unfinished,
)

from rlserve.controller.events import RequestAnswered, RequestsReturned, RequestsStarted, WorkerLost
from rlserve.controller.replicas import Replicas
from rlserve.controller.request_desk import RequestDesk
from rlserve.engine.requests.request import RequestOutput, SamplingParams
from rlserve.errors import WeightsRefusedError, WorkerFailedError
from rlserve.manager.policies.base import Role
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.tracking.events import WeightEvent


class Setting:
    """Replicas over fake workers, with a real router."""

    def __init__(self, tasks: asyncio.TaskGroup, *slot_ids: str, request_timeout_s: float = 5.0) -> None:
        self.fleet = FakeFleet(slot_ids, FakeReplica)
        self.router = Router()
        self.transport = FakeTransport()
        self.clock = FakeClock(0.0)
        self.context = run_context(tasks, self.clock)
        events = self.context.events
        self.answers = recorded(events, RequestAnswered)
        self.started = recorded(events, RequestsStarted)
        self.returned = recorded(events, RequestsReturned)
        self.losses = recorded(events, WorkerLost)
        self.deliveries = recorded(events, WeightEvent)
        self.published_again: list[int] = []
        fakes: Any = self
        self.replicas = Replicas(
            self.context,
            fleet=fakes.fleet,
            router=self.router,
            transport=self.transport,
            trainers=fakes,
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
        return [(event.slot_id, event.version) for event in self.deliveries]

    async def publish_again(self, transport: FakeTransport, num_publications: int) -> None:
        self.published_again.append(num_publications)
        transport.is_gone = False
        transport.num_publications += 1

    def worker(self, slot_id: str) -> FakeReplica:
        worker = self.fleet[slot_id]
        assert isinstance(worker, FakeReplica)
        return worker

    def submit(self, *group_ids: str) -> None:
        for position, group_id in enumerate(group_ids):
            group = PromptGroup(
                id=group_id, position=position, row=position, prompt_text="", prompt_token_ids=(position,), answer=None
            )
            requests = TrainingRequests(sampling=SamplingParams(n=1), run_seed=0)
            self.router.submit(requests.of(group, admitted_version=0), time_s=self.clock.now())
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


def run(scenario: Callable[[Setting], Awaitable[None]], *slot_ids: str, request_timeout_s: float = 5.0) -> None:
    """Run a scenario; every task that was spawned must end without an error."""

    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, *slot_ids, request_timeout_s=request_timeout_s)
            await asyncio.wait_for(scenario(setting), 10)
            await setting.replicas.close()

    asyncio.run(whole())


def test_a_replica_serves_only_with_the_newest_weights() -> None:
    async def scenario(setting: Setting) -> None:
        setting.submit("0:0")
        await setting.replicas.join("a")
        await settled()
        methods = [method for _, method in setting.fleet.log]
        assert methods == ["load_weights", "submit"]
        assert [event.ids for event in setting.started] == [(training_id("0:0"),)]

    run(scenario, "a")


def test_a_version_published_while_a_replica_joins_reaches_it_before_it_is_in() -> None:
    async def scenario(setting: Setting) -> None:
        setting.transport.after_delivery = lambda: setattr(setting.transport, "newest", 1)
        await setting.replicas.join("a")
        assert setting.delivered == [("a", 0), ("a", 1)]

    run(scenario, "a")


def test_a_broadcast_brings_each_replica_to_the_newest_version_once() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        await setting.replicas.join("b")
        setting.transport.newest = 3
        await asyncio.gather(setting.replicas.broadcast(), setting.replicas.broadcast())
        assert setting.delivered == [("a", 0), ("b", 0), ("a", 3), ("b", 3)]

    run(scenario, "a", "b")


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
        setting.worker("a").answers["load_weights"] = WorkerFailedError("no memory")
        with pytest.raises(WorkerFailedError):
            await setting.replicas.join("a")
        assert setting.replicas.slot_ids == ()

        def new_version_and_death() -> None:
            setting.transport.newest = 1
            asyncio.get_running_loop().call_soon(setting.worker("b").kill)

        setting.transport.after_delivery = new_version_and_death
        with pytest.raises(WorkerFailedError):
            await setting.replicas.join("b")
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


def test_a_replica_that_is_lost_while_it_leaves() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.worker("a").answers["stop_rollout"] = lambda: setting.worker("a").kill() or ()
        with pytest.raises(WorkerFailedError):
            await setting.replicas.leave("a")
        setting.replicas.forget("a")
        assert setting.replicas.slot_ids == ()

    run(scenario, "a")


def test_refused_weights_stop_the_run() -> None:
    """What the engine holds is not what was published: nothing that it says can be trusted."""

    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.transport.newest = 1
        setting.worker("a").answers["load_weights"] = WeightsRefusedError("wrong fingerprint")
        with pytest.raises(WeightsRefusedError):
            await setting.replicas.broadcast()
        setting.worker("a").answers["load_weights"] = None

    run(scenario, "a")


def test_a_replica_lost_in_the_tick_of_a_broadcast_does_not_end_the_run() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        await setting.replicas.join("b")
        setting.transport.newest = 1
        broadcast = setting.replicas.broadcast()
        updates = asyncio.create_task(broadcast)
        asyncio.get_running_loop().call_soon(setting.replicas.forget, "b")  # after the updates were made, before theirs
        await updates
        assert setting.delivered == [("a", 0), ("b", 0), ("a", 1)]
        assert setting.replicas.slot_ids == ("a",)

    run(scenario, "a", "b")


def test_what_is_gone_with_its_publisher_is_published_again_and_no_receiver_is_blamed() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        await setting.replicas.join("b")
        setting.transport.newest, setting.transport.is_gone = 1, True
        await setting.replicas.broadcast()
        assert sorted(setting.delivered[2:]) == [("a", 1), ("b", 1)]
        assert set(setting.published_again) == {1}
        setting.transport.is_gone = True
        await setting.replicas.join("late")
        assert setting.lost == []
        assert setting.replicas.slot_ids == ("a", "b", "late")

    run(scenario, "a", "b", "late")


def test_a_replica_that_stands_still_at_the_last_version_is_lost_by_name_and_the_broadcast_ends() -> None:
    """The end of a run waits for every broadcast: one that does not answer must not hold it up past the deadline."""

    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        await setting.replicas.join("b")
        setting.transport.newest, setting.transport.timeout_s = 1, 0.01
        with unfinished(setting.worker("b"), "load_weights"):
            await setting.replicas.broadcast()
        assert setting.lost == ["b"]
        assert "the replica on b" in str(setting.losses[0].error)
        answer = setting.ask("x")
        await settled()
        setting.worker("a").finish("evaluation/x#0")
        assert len(await answer) == 1

    run(scenario, "a", "b")


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
        assert "training/0:0#0" in setting.worker("a").held
        setting.worker("a").finish("evaluation/0#0")
        await settled()
        assert setting.answers == []

    run(scenario, "a")
