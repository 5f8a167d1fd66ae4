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

from rlserve.controller.events import GroupsReturned, GroupsStarted, OutputReceived, WorkerLost
from rlserve.controller.replicas import Replicas
from rlserve.engine.requests.request import Request, SamplingParams
from rlserve.errors import DeadlineExceededError, WeightsRefusedError, WorkerFailedError
from rlserve.manager.policies.base import Role
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.router import Router
from rlserve.tracking.events import WeightEvent


class Setting:
    """Replicas over fake workers, with a real router."""

    def __init__(self, tasks: asyncio.TaskGroup, *slot_ids: str, request_timeout_s: float = 5.0) -> None:
        self.fleet = FakeFleet(slot_ids, FakeReplica)
        self.router = Router(sampling=SamplingParams(n=1), run_seed=0)
        self.transport = FakeTransport()
        self.clock = FakeClock(0.0)
        self.context = run_context(tasks, self.clock)
        events = self.context.events
        self.outputs: list[str] = []
        events.subscribe(OutputReceived, self._note_output)
        self.started = recorded(events, GroupsStarted)
        self.returned = recorded(events, GroupsReturned)
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
            self.router.submit(group, admitted_version=0)
        self.replicas.dispatch()

    def _note_output(self, event: OutputReceived) -> None:
        group = self.router.finished(event.slot_id, event.output)
        if group is not None:
            self.outputs.append(group.id)


def run(scenario: Callable[[Setting], Awaitable[None]], *slot_ids: str, request_timeout_s: float = 5.0) -> None:
    """Run a scenario; every task that was spawned must end without an error."""

    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, *slot_ids, request_timeout_s=request_timeout_s)
            await asyncio.wait_for(scenario(setting), 10)
            await setting.replicas.close()

    asyncio.run(whole())


def direct_requests(*ids: str) -> list[Request]:
    return [Request(id=name, prompt_token_ids=(1,), sampling=SamplingParams()) for name in ids]


def test_a_replica_serves_only_with_the_newest_weights() -> None:
    async def scenario(setting: Setting) -> None:
        setting.submit("0:0")
        await setting.replicas.join("a")
        await settled()
        methods = [method for _, method in setting.fleet.log]
        assert methods == ["start_rollout", "load_weights", "submit"]
        assert [event.group_ids for event in setting.started] == [("0:0",)]

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
        answer = asyncio.create_task(setting.replicas.generate(direct_requests("evaluation")))
        await settled()
        await setting.replicas.join("b")
        await setting.replicas.leave("a")
        await settled()
        taken = setting.worker("b").held
        assert sorted(taken) == ["0:0#1", "0:1#1", "evaluation"]
        assert all(request.resumed[0].token_ids == (7,) for request in taken.values())
        assert [event.group_ids for event in setting.returned] == [("0:0", "0:1")]
        for request_id in list(taken):
            setting.worker("b").finish(request_id)
        await answer
        await settled()
        assert sorted(setting.outputs) == ["0:0", "0:1"]
        assert setting.fleet.log[-1][0] == "b"
        setting.router.check_integrity()

    run(scenario, "a", "b")


def test_what_a_lost_replica_had_starts_over_elsewhere() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0")
        answer = asyncio.create_task(setting.replicas.generate(direct_requests("evaluation")))
        await settled()
        await setting.replicas.join("b")
        setting.worker("a").kill()
        await settled()
        assert setting.lost == ["a"]
        assert sorted(setting.worker("b").held) == ["0:0#1", "evaluation"]
        setting.worker("b").finish("evaluation")
        (output,) = await answer
        assert output.request_id == "evaluation"

    run(scenario, "a", "b")


def test_requests_wait_while_there_is_no_replica() -> None:
    async def scenario(setting: Setting) -> None:
        answer = asyncio.create_task(setting.replicas.generate(direct_requests("evaluation")))
        await settled()
        await setting.replicas.join("a")
        await settled()
        setting.worker("a").finish("evaluation")
        await answer

    run(scenario, "a")


def test_an_answer_that_comes_too_late_is_passed_over() -> None:
    async def scenario(setting: Setting) -> None:
        await setting.replicas.join("a")
        setting.submit("0:0")
        await settled()
        setting.worker("a").finish("0:0#0")
        await settled()
        worker = setting.worker("a")
        worker.held["0:0#0"] = None
        worker.finish("0:0#0")
        await settled()
        assert setting.outputs == ["0:0"]

    run(scenario, "a")


def test_a_replica_lost_while_it_joins_is_not_served_from() -> None:
    async def scenario(setting: Setting) -> None:
        setting.worker("a").answers["start_rollout"] = WorkerFailedError("no memory")
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
        answer = asyncio.create_task(setting.replicas.generate(direct_requests("evaluation")))
        await settled()
        assert worker.held == {}
        worker.closed = True
        worker.changed.set()
        stop.set_result(())
        await leaving
        await setting.replicas.join("b")
        await settled()
        setting.worker("b").finish("evaluation")
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
        answer = asyncio.create_task(setting.replicas.generate(direct_requests("evaluation")))
        await settled()
        setting.worker("a").finish("evaluation")
        assert len(await answer) == 1

    run(scenario, "a", "b")


@pytest.mark.parametrize("slot_ids", [("a",), ()])
def test_requests_outside_the_ledger_that_do_not_get_on_have_a_deadline(slot_ids: tuple[str, ...]) -> None:
    async def scenario(setting: Setting) -> None:
        for slot_id in slot_ids:
            await setting.replicas.join(slot_id)
        setting.clock.now_s = 1.0
        answer = asyncio.create_task(setting.replicas.generate(direct_requests("evaluation/0", "evaluation/1")))
        await settled()
        setting.clock.now_s = 2.0
        where = "with a" if slot_ids else "with no replica"
        with pytest.raises(DeadlineExceededError, match=rf"2 of 2 requests .*request_timeout_s=0.01 s: 2 {where}"):
            await answer
        assert not await setting.replicas.generate([])

    run(scenario, *slot_ids, request_timeout_s=0.01)
