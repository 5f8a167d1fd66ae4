"""Ledger, router and buffer together, under random finishing orders, weight updates, drops, crashes and moves.

Proves: staleness never exceeds the bound, nothing is lost, nothing is trained twice, and the run can always go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollout_builders import make_group, make_sample

from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.groups import PromptGroup, ScoredGroup
from rlserve.rollout.ledger import GroupState, Ledger
from rlserve.rollout.requests.router import Router

NUM_SAMPLES = 2


class FakeReplica:
    """Stands in for an engine: token versions by request and sample, grown one token a sample and step."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.requests: dict[str, list[SampleOutput]] = {}

    def add(self, request: Request) -> None:
        resumed = {sample.index: sample for sample in request.resumed}
        for sample in request.resumed:
            assert max(sample.weight_versions, default=0) <= self.version, (
                "a token is newer than the replica that resumes it"
            )
        self.requests[request.id] = [
            resumed.get(index, make_sample(index, (), finish=None)) for index in range(NUM_SAMPLES)
        ]

    def step(self, request_id: str, *, last: bool) -> None:
        self.requests[request_id] = [
            sample
            if sample.finish_reason is FinishReason.STOP
            else make_sample(
                sample.index, (*sample.weight_versions, self.version), finish=FinishReason.STOP if last else None
            )
            for sample in self.requests[request_id]
        ]

    def output(self, request_id: str) -> RequestOutput:
        return RequestOutput(request_id=request_id, samples=tuple(self.requests[request_id]))


def some_replica(machine: PipelineMachine) -> bool:
    return bool(machine.replicas)


def some_request(machine: PipelineMachine) -> bool:
    return any(replica.requests for replica in machine.replicas.values())


class PipelineMachine(RuleBasedStateMachine):
    """The rollout side of a run, one event at a time."""

    @initialize(prompts_per_step=st.integers(1, 3), max_staleness=st.integers(0, 3))
    def begin(self, prompts_per_step: int, max_staleness: int) -> None:
        self.prompts_per_step, self.max_staleness = prompts_per_step, max_staleness
        self.ledger = Ledger(prompts_per_step=prompts_per_step, max_staleness=max_staleness)
        self.buffer = SampleBuffer(self.ledger, prompts_per_step=prompts_per_step)
        self.router = Router(sampling=SamplingParams(n=NUM_SAMPLES), run_seed=0)
        self.replicas: dict[str, FakeReplica] = {}
        self.waiting_for_reward: list[tuple[PromptGroup, RequestOutput]] = []
        self.version = 0
        self.trained: set[str] = set()
        self.num_replicas = 0

    @rule(count=st.integers(1, 4))
    def admit(self, count: int) -> None:
        for position in range(self.ledger.num_admitted, self.ledger.num_admitted + min(count, self.ledger.room)):
            group = make_group(position)
            record = self.ledger.admit(group.id, position=position, current_version=self.version, time_s=0.0)
            self.router.submit(group, admitted_version=record.admitted_version)

    @precondition(lambda self: len(self.replicas) < 3)
    @rule(lag=st.integers(0, 3), capacity=st.integers(1, 5))
    def join(self, lag: int, capacity: int) -> None:
        replica_id = f"replica{self.num_replicas}"
        self.num_replicas += 1
        self.replicas[replica_id] = FakeReplica(max(0, self.version - lag))
        self.router.join(replica_id, version=self.replicas[replica_id].version, capacity=capacity)

    @rule()
    def assign(self) -> None:
        for replica_id, requests in self.router.assign().items():
            for request in requests:
                self.replicas[replica_id].add(request)
                self.ledger.start(request.id.partition("#")[0], time_s=0.0)

    @precondition(some_request)
    @rule(data=st.data(), last=st.booleans())
    def generate(self, data: st.DataObject, last: bool) -> None:
        busy = [(key, request_id) for key, replica in self.replicas.items() for request_id in replica.requests]
        replica_id, request_id = data.draw(st.sampled_from(busy))
        self._generate(replica_id, request_id, last=last)

    def _generate(self, replica_id: str, request_id: str, *, last: bool) -> None:
        replica = self.replicas[replica_id]
        replica.step(request_id, last=last)
        if last:
            output = replica.output(request_id)
            del replica.requests[request_id]
            group = self.router.finished(replica_id, output)
            assert group is not None
            self.waiting_for_reward.append((group, output))

    @precondition(lambda self: self.waiting_for_reward)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def reward(self, data: st.DataObject, fails: bool) -> None:
        place = data.draw(st.integers(0, len(self.waiting_for_reward) - 1))
        group, output = self.waiting_for_reward.pop(place)
        if fails:
            self.ledger.drop(group.id, reason="reward", time_s=0.0)
        else:
            self._score(group, output)

    def _score(self, group: PromptGroup, output: RequestOutput) -> None:
        record = self.ledger.get(group.id)
        assert output.request_id == f"{group.id}#{record.attempt}", "router and ledger count attempts alike"
        self.ledger.score(group.id, time_s=0.0)
        scored = ScoredGroup(
            group=group,
            output=output,
            rewards=(0.0,) * NUM_SAMPLES,
            admitted_version=record.admitted_version,
            attempt=record.attempt,
        )
        assert scored.oldest_version >= record.admitted_version
        self.buffer.put(scored, time_s=0.0)

    @precondition(some_replica)
    @rule(data=st.data(), lag=st.integers(0, 3))
    def update_weights(self, data: st.DataObject, lag: int) -> None:
        replica_id = data.draw(st.sampled_from(sorted(self.replicas)))
        replica = self.replicas[replica_id]
        replica.version = max(replica.version, self.version - lag)
        self.router.set_version(replica_id, replica.version)

    @precondition(some_replica)
    @rule(data=st.data(), crash=st.booleans())
    def leave(self, data: st.DataObject, crash: bool) -> None:
        replica_id = data.draw(st.sampled_from(sorted(self.replicas)))
        replica = self.replicas.pop(replica_id)
        partials = None if crash else [replica.output(request_id) for request_id in replica.requests]
        returned = self.router.replica_left(replica_id, partials)
        assert set(returned) == {request_id.partition("#")[0] for request_id in replica.requests}
        for group_id in returned:
            self.ledger.requeue(group_id, time_s=0.0)

    @rule()
    def train(self) -> None:
        self._train()

    def _train(self) -> bool:
        batch = self.buffer.take(self.version)
        if batch is None:
            return False
        assert len(batch) == self.prompts_per_step
        for scored in batch:
            assert self.version - scored.oldest_version <= self.max_staleness
            assert scored.group.id not in self.trained
            self.trained.add(scored.group.id)
        self.buffer.commit(time_s=0.0)
        self.version += 1
        return True

    @invariant()
    def integrity(self) -> None:
        self.ledger.check_integrity()
        self.router.check_integrity()
        self.buffer.check_integrity()
        assert self.router.num_waiting == self.ledger.count(GroupState.PENDING)
        assert self.router.num_running + len(self.waiting_for_reward) == self.ledger.count(GroupState.RUNNING)

    def teardown(self) -> None:
        """From wherever it is, the run can go on: with everything finished there is a batch at once."""
        if not hasattr(self, "ledger"):
            return
        self.replicas["fresh"] = FakeReplica(self.version)
        self.router.join("fresh", version=self.version, capacity=10**6)
        self.admit(self.ledger.room)
        self.assign()
        steps: list[Callable[[], Any]] = [
            lambda replica_id=replica_id, request_id=request_id: self._generate(replica_id, request_id, last=True)
            for replica_id, replica in self.replicas.items()
            for request_id in replica.requests
        ]
        for step in steps:
            step()
        while self.waiting_for_reward:
            self._score(*self.waiting_for_reward.pop())
        assert self.router.num_waiting == self.router.num_running == 0
        assert len(self.buffer) == self.ledger.max_live
        assert self._train()


PipelineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
test_pipeline_machine = PipelineMachine.TestCase
