"""The rollout role on a fake engine: every output once, weights only between steps, stop gives back the rest."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rlserve.engine import Request, RequestOutput, SamplingParams
from rlserve.engine.stats.engine_stats import EngineStats
from rlserve.engine.stats.metrics import vllm_metrics
from rlserve.errors import WorkerFailedError
from rlserve.pool.roles.rollout import RolloutRole
from rlserve.weights.snapshot import WeightSnapshot, pack


class FakeEngine:
    """Finishes the oldest request in each step; a gate lets the test hold it in the middle of one."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.waiting: list[str] = []
        self.weight_version = 0
        self.gate = threading.Event()
        self.gate.set()
        self.in_step = threading.Event()
        self.tensors: dict[str, torch.Tensor] = {}
        self.failure: Exception | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    def add(self, request: Request) -> None:
        self.events.append(f"add {request.id}")
        self.waiting.append(request.id)

    def step(self) -> list[RequestOutput]:
        self.events.append("step begins")
        self.in_step.set()
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.events.append("step ends")
        return [_output(self.waiting.pop(0))] if self.waiting else []

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        aborted = [name for name in request_ids if name in self.waiting]
        self.waiting = [name for name in self.waiting if name not in aborted]
        return [_output(name) for name in aborted]

    def load_weights(self, version: int, tensors: dict[str, torch.Tensor]) -> None:
        self.events.append(f"load {version}")
        self.weight_version, self.tensors = version, dict(tensors)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self.tensors.items())

    def release_memory(self, *, weights: bool) -> None:
        self.events.append(f"release, weights too: {weights}")

    def check_integrity(self) -> None:
        pass

    def stats(self) -> EngineStats:
        counts = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        return EngineStats(**(counts | {"num_blocks": 1, "weight_version": self.weight_version}))


def _output(request_id: str) -> RequestOutput:
    return RequestOutput(request_id=request_id, samples=())


def _requests(*ids: str) -> list[Request]:
    return [Request(id=name, prompt_token_ids=(1,), sampling=SamplingParams()) for name in ids]


def _snapshot(version: int) -> WeightSnapshot:
    return pack(version, {"weight": torch.full((4,), float(version))}, torch.float32)


def _collect_all(role: RolloutRole) -> list[str]:
    """Poll until the role says that nothing more comes."""
    found: list[str] = []
    while True:
        collected = role.collect(5.0)
        found += [output.request_id for output in collected.outputs]
        if collected.closed:
            return found


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def role(engine: Any) -> RolloutRole:
    return RolloutRole(engine)


def test_every_output_is_handed_out_exactly_once(engine: FakeEngine, role: RolloutRole) -> None:
    names = [f"request {number}" for number in range(200)]
    with ThreadPoolExecutor() as threads:
        collected = threads.submit(_collect_all, role)
        for start in range(0, 200, 7):
            role.submit(_requests(*names[start : start + 7]))
        partials = [output.request_id for output in role.stop()]
        finished = collected.result(timeout=20)
    assert sorted(finished + partials) == sorted(names)


def test_only_time_within_steps_counts_as_busy(role: RolloutRole, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()  # each look at the clock takes one
    monkeypatch.setattr("rlserve.pool.roles.rollout.time.perf_counter", lambda: float(next(seconds)))
    role.submit(_requests("a", "b", "c"))
    stats = role.collect(10.0).stats
    role.stop()
    assert stats.busy_s == stats.num_steps >= 1


def test_weights_are_swapped_only_between_steps(engine: FakeEngine, role: RolloutRole) -> None:
    engine.gate.clear()
    role.submit(_requests("a", "b"))
    assert engine.in_step.wait(5)
    with ThreadPoolExecutor() as threads:
        loading = threads.submit(role.load_weights, _snapshot(1))
        engine.gate.set()
        receipt = loading.result(timeout=10)
    role.stop()
    assert receipt.version == 1
    assert receipt.fingerprint == _snapshot(1).fingerprint
    place = engine.events.index("load 1")
    before = engine.events[:place]
    assert before.count("step begins") == before.count("step ends")


def test_stop_returns_what_is_unfinished_and_frees_the_memory(engine: FakeEngine, role: RolloutRole) -> None:
    engine.gate.clear()
    role.submit(_requests("a", "b", "c"))
    assert engine.in_step.wait(5)
    with ThreadPoolExecutor() as threads:
        stopping = threads.submit(role.stop)
        engine.gate.set()
        partials = [output.request_id for output in stopping.result(timeout=10)]
    finished = _collect_all(role)
    assert sorted(finished + partials) == ["a", "b", "c"]
    assert finished[0] == "a"
    assert engine.events[-1] == "release, weights too: True"


def test_nothing_runs_after_stop(engine: FakeEngine, role: RolloutRole) -> None:
    role.stop()
    with pytest.raises(WorkerFailedError, match="given up"):
        role.load_weights(_snapshot(1))
    assert "load 1" not in engine.events


def test_a_poll_without_outputs_ends_by_itself(role: RolloutRole) -> None:
    collected = role.collect(0.0)
    assert collected.outputs == ()
    assert not collected.closed
    role.stop()


def test_an_engine_that_fails_is_reported_by_every_call(engine: FakeEngine, role: RolloutRole) -> None:
    engine.failure = RuntimeError("out of memory")
    role.submit(_requests("a"))
    with pytest.raises(WorkerFailedError, match="out of memory"):
        _collect_all(role)
    with pytest.raises(WorkerFailedError, match="out of memory"):
        role.submit(_requests("b"))


def test_a_poll_tells_the_numbers_of_the_engine_by_the_names_of_vllm(engine: FakeEngine, role: RolloutRole) -> None:
    assert role.collect(0.0).stats.engine_metrics == vllm_metrics(engine.stats())
    role.stop()


def test_requests_are_queued_while_a_step_is_under_way(engine: FakeEngine, role: RolloutRole) -> None:
    """A first step may compile for minutes: whoever hands requests over must not wait for it."""
    engine.gate.clear()
    role.submit(_requests("a"))
    assert engine.in_step.wait(5)
    for name in "bcdefghijk":  # more than a worker has threads
        role.submit(_requests(name))
    assert engine.events == ["add a", "step begins"]
    engine.gate.set()
    found: list[str] = []
    while len(found) < 11:
        found += [output.request_id for output in role.collect(5.0).outputs]
    assert found == list("abcdefghijk")
    role.stop()


def test_nothing_is_submitted_to_a_role_that_is_being_given_up(role: RolloutRole) -> None:
    role.stop()
    with pytest.raises(WorkerFailedError, match="being given up"):
        role.submit(_requests("late"))
