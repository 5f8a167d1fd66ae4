"""Ledger, router and buffer together, with requests of all kinds, under random finishing orders, weight updates, drops,
crashes and moves.

Proves: staleness never exceeds the bound, nothing is lost, nothing is trained or answered twice, no replica is over its
capacity, the urgent go first, what makes no progress is found, and the run can always go on.
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
from rlserve.rollout.requests.base import URGENCY, RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests

NUM_SAMPLES = 2
TIMEOUT_S = 10.0


class FakeReplica:
    """Stands in for an engine: token versions by request and sample, grown one token a sample and step."""

    def __init__(self, version: int, capacity: int) -> None:
        self.version = version
        self.capacity = capacity
        self.requests: dict[str, list[SampleOutput]] = {}

    def add(self, request: Request) -> None:
        resumed = {sample.index: sample for sample in request.resumed}
        for sample in request.resumed:
            assert max(sample.weight_versions, default=0) <= self.version, (
                "a token is newer than the replica that resumes it"
            )
        self.requests[request.id] = [
            resumed.get(index, make_sample(index, (), finish=None)) for index in range(request.sampling.n)
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
        self.router = Router()
        self.training = TrainingRequests(sampling=SamplingParams(n=NUM_SAMPLES), run_seed=0)
        self.now_s = 0.0
        self.progress_s = 0.0
        """When a replica last joined or made a step."""
        self.unanswered: dict[str, float] = {}
        """Held-out requests by name, with when they came to where they are."""
        self.num_evaluations = 0
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
            spec = self.training.of(group, min_version=record.oldest_version)
            self.router.submit(spec, time_s=self.now_s)

    @rule(count=st.integers(1, 3))
    def evaluate(self, count: int) -> None:
        for number in range(self.num_evaluations, self.num_evaluations + count):
            request_id = RequestId(kind=RequestKind.EVALUATION, name=f"{self.version}/{number}")
            spec = RequestSpec(
                id=request_id,
                prompt_token_ids=(8, number),
                sampling=SamplingParams(n=1),
                position=number,
                min_version=self.version,
                timeout_s=TIMEOUT_S,
            )
            self.router.submit(spec, time_s=self.now_s)
            self.unanswered[request_id.name] = self.now_s
        self.num_evaluations += count

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.unanswered)))
        del self.unanswered[name]
        self.router.withdraw(RequestId(kind=RequestKind.EVALUATION, name=name))

    @rule(seconds=st.integers(1, int(2 * TIMEOUT_S)))
    def wait(self, seconds: int) -> None:
        """Nothing happens: what expires has made no progress for its deadline, and what stays is within it."""
        self.now_s += seconds
        for expired in self.router.expire(time_s=self.now_s):
            assert expired.id.kind is RequestKind.EVALUATION, "training has no deadline"
            assert self.now_s - self.unanswered.pop(expired.id.name) > TIMEOUT_S
        for name, since_s in self.unanswered.items():
            assert self.now_s - max(since_s, self.progress_s) <= 2 * TIMEOUT_S, f"{name} is overdue"

    @precondition(lambda self: len(self.replicas) < 3)
    @rule(lag=st.integers(0, 3), capacity=st.integers(1, 5))
    def join(self, lag: int, capacity: int) -> None:
        replica_id = f"replica{self.num_replicas}"
        self.num_replicas += 1
        self._join(replica_id, FakeReplica(max(0, self.version - lag), capacity))

    def _join(self, replica_id: str, replica: FakeReplica) -> None:
        self.replicas[replica_id] = replica
        self.router.join(replica_id, version=replica.version, capacity=replica.capacity, time_s=self.now_s)
        self.progress_s = self.now_s

    @rule()
    def assign(self) -> None:
        for replica_id, requests in self.router.assign(time_s=self.now_s).items():
            urgencies = [URGENCY[RequestId.parse(request.id).kind] for request in requests]
            assert urgencies == sorted(urgencies, reverse=True), "the urgent go first"
            for request in requests:
                self._give(self.replicas[replica_id], request, self.router.version(replica_id))
        has_waiting = self.router.num_waiting(RequestKind.EVALUATION) > 0
        for replica in self.replicas.values():
            if has_waiting and replica.version == self.version:  # as new as anything may ask for
                assert self._load(replica, RequestKind.EVALUATION) >= replica.capacity, "it has room for the urgent"

    def _give(self, replica: FakeReplica, request: Request, version: int) -> None:
        request_id = RequestId.parse(request.id)
        load = self._load(replica, request_id.kind)
        replica.add(request)
        assert load == 0 or self._load(replica, request_id.kind) <= replica.capacity, "over its capacity"
        if request_id.kind is RequestKind.TRAINING:
            self.ledger.start(request_id.name, version=version, time_s=0.0)
        else:
            self.unanswered[request_id.name] = self.now_s

    def _load(self, replica: FakeReplica, kind: RequestKind) -> int:
        """Samples of that kind, or of a more urgent one, that are still waited for; a request counts in full until it
        is answered."""
        num_samples = {RequestKind.TRAINING: NUM_SAMPLES, RequestKind.EVALUATION: 1}
        wanted = [RequestId.parse(text) for text in replica.requests if self._is_wanted(text)]
        return sum(num_samples[request_id.kind] for request_id in wanted if URGENCY[request_id.kind] >= URGENCY[kind])

    def _is_wanted(self, text: str) -> bool:
        request_id = RequestId.parse(text)
        return request_id.kind is RequestKind.TRAINING or request_id.name in self.unanswered

    @precondition(some_request)
    @rule(data=st.data(), last=st.booleans())
    def generate(self, data: st.DataObject, last: bool) -> None:
        busy = [(key, request_id) for key, replica in self.replicas.items() for request_id in replica.requests]
        replica_id, request_id = data.draw(st.sampled_from(busy))
        self._generate(replica_id, request_id, last=last)

    def _generate(self, replica_id: str, text: str, *, last: bool) -> None:
        replica = self.replicas[replica_id]
        replica.step(text, last=last)
        self.router.note_step(replica_id, time_s=self.now_s)
        self.progress_s = self.now_s
        if not last:
            return
        output, is_wanted = replica.output(text), self._is_wanted(text)
        del replica.requests[text]
        request_id = self.router.finished(replica_id, output)
        assert self.router.finished(replica_id, output) is None, "it is answered once"
        assert (request_id is not None) is is_wanted
        if request_id is None:
            return
        if request_id.kind is RequestKind.TRAINING:
            self.waiting_for_reward.append((make_group(int(request_id.name.partition(":")[2])), output))
        else:
            version = int(request_id.name.partition("/")[0])
            assert all(min(sample.weight_versions) >= version for sample in output.samples), "by old weights"
            del self.unanswered[request_id.name]

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
        assert RequestId.parse(output.request_id).attempt == record.attempt, "router and ledger count attempts alike"
        self.ledger.score(group.id, time_s=0.0)
        scored = ScoredGroup(
            group=group,
            output=output,
            rewards=(0.0,) * NUM_SAMPLES,
            attempt=record.attempt,
        )
        assert scored.oldest_version >= record.oldest_version
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
        returned = self.router.replica_left(replica_id, partials, time_s=self.now_s)
        assert set(map(str, returned)) == {text for text in replica.requests if self._is_wanted(text)}
        for request_id in returned:
            if request_id.kind is RequestKind.TRAINING:
                self.ledger.requeue(request_id.name, time_s=0.0)
            else:
                self.unanswered[request_id.name] = self.now_s

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
        num_waiting, num_running = self.router.num_waiting, self.router.num_running
        assert num_waiting(RequestKind.TRAINING) == self.ledger.count(GroupState.PENDING)
        in_flight = num_running(RequestKind.TRAINING) + len(self.waiting_for_reward)
        assert in_flight == self.ledger.count(GroupState.RUNNING)
        evaluations = num_waiting(RequestKind.EVALUATION) + num_running(RequestKind.EVALUATION)
        assert evaluations == len(self.unanswered), "nothing is lost"

    def teardown(self) -> None:
        """From wherever it is, the run can go on: with everything finished there is a batch at once."""
        if not hasattr(self, "ledger"):
            return
        self._join("fresh", FakeReplica(self.version, 10**6))
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
        for kind in RequestKind:
            assert self.router.num_waiting(kind) == self.router.num_running(kind) == 0
        assert not self.unanswered, "everything is answered"
        assert len(self.buffer) == self.ledger.max_live
        assert self._train()


PipelineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
test_pipeline_machine = PipelineMachine.TestCase
