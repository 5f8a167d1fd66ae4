"""Replicas over fake workers, with a real router."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from controller_fakes import FakeClock, FakeFleet, FakeReplica, recorded, run_context
from virtual_time import run_virtual

from rlserve.controller.canary import CanaryWatch
from rlserve.controller.events import RequestAnswered, RequestsReturned, RequestsStarted, WorkerLost
from rlserve.controller.replicas import Replicas
from rlserve.controller.request_desk import RequestDesk
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_sync import WeightSync
from rlserve.engine.requests.request import RequestOutput, SamplingParams
from rlserve.manager.roles import Role
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.tracking.events import WeightEvent


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
            self.context,
            fleet,
            self.trainers,
            canary,
            timeout_s=weights_timeout_s,
            anchor_every=1,
            weights_are_spread=False,
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
