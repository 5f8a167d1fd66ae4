"""An engine for tests of what runs it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping

import torch
from engine_numbers import some_stats

from rlserve.engine import EngineStats, Request, RequestOutput, SampleDelta, SamplingParams
from rlserve.engine.decoder.staging import StagedWeights
from rlserve.engine.stats.step_work import NO_WORK
from rlserve.engine.weights.fingerprint import fingerprint


class FakeEngine:
    """Finishes the oldest request in each step; a gate lets the test hold it in the middle of one."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.waiting: list[str] = []
        self.weight_version = 0
        self.is_paused = False
        self.gate = threading.Event()
        self.gate.set()
        self.in_step = threading.Event()
        self.tensors: dict[str, torch.Tensor] = {}
        self.failure: BaseException | None = None
        self.last_work = NO_WORK
        self.num_generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    @property
    def can_step(self) -> bool:
        return self.has_work and not self.is_paused

    def add(self, request: Request) -> bool:
        self.events.append(f"add {request.id}")
        self.waiting.append(request.id)
        return True

    def step(self) -> list[RequestOutput]:
        self.events.append("step begins")
        self.in_step.set()
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.events.append("step ends")
        self.num_generated_tokens += len(self.waiting)
        return [output_of(self.waiting.pop(0))] if self.waiting else []

    def new_tokens(self, request_id: str, num_seen: Mapping[int, int]) -> tuple[SampleDelta, ...]:
        self.events.append("new tokens")
        return ()

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        aborted = [name for name in request_ids if name in self.waiting]
        self.waiting = [name for name in self.waiting if name not in aborted]
        return [output_of(name) for name in aborted]

    def load_weights(self, version: int, tensors: dict[str, torch.Tensor]) -> None:
        self.events.append(f"load {version}")
        self.weight_version, self.tensors = version, dict(tensors)

    def stage_weights(self, tensors: Mapping[str, torch.Tensor]) -> StagedWeights:
        self.events.append("stage")
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        return StagedWeights(fingerprint=fingerprint(copies.items()), tensors=copies, beside=None)

    def swap_weights(self, version: int, staged: StagedWeights) -> int:
        self.events.append(f"swap {version}")
        self.weight_version, self.tensors = version, dict(staged.tensors)
        return staged.fingerprint

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self.tensors.items())

    def release_memory(self, *, weights: bool) -> None:
        self.events.append(f"release, weights too: {weights}")

    def check_integrity(self) -> None:
        pass

    def stats(self) -> EngineStats:
        return some_stats(
            weight_version=self.weight_version,
            num_running=len(self.waiting),
            num_generated_tokens=self.num_generated_tokens,
        )


def output_of(request_id: str) -> RequestOutput:
    """An answer without samples."""
    return RequestOutput(request_id=request_id, samples=())


def requests_of(*ids: str) -> list[Request]:
    """Requests of one token."""
    return [Request(id=name, prompt_token_ids=(1,), sampling=SamplingParams()) for name in ids]
