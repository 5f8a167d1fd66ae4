"""Workers, replicas and trainers that only write down what is asked of them, and answer what a test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

from ray.exceptions import RayActorError

from rlserve.controller.clock import RunClock
from rlserve.controller.context import RunContext
from rlserve.controller.counters import Counters
from rlserve.controller.events import ControllerEvent, EventBus
from rlserve.controller.signal import Signal
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, RequestOutput, SampleOutput
from rlserve.errors import WorkerLostError
from rlserve.pool.base import Collected, Copied, Joined, RolloutStats, Stepped, WorkerInfo, WorkerSpec
from rlserve.pool.gangs import Gang
from rlserve.pool.slots import Slot
from rlserve.roofline.accelerators import slot_type
from rlserve.tracking.events import Record
from rlserve.weights.offer import Receipt, SentPart

BATCH: Any = SimpleNamespace(token_ids=(1, 2, 3))
"""All that a trainer group asks of one."""
STEPPED = Stepped(metrics={"loss": 1.0})
"""What a trainer answers that was asked to copy nothing."""


class FakeWorker:
    """Answers calls from ``answers`` (a value, an exception to raise, a future to wait for, or a function)."""

    def __init__(self, slot_id: str, log: list[tuple[str, str]]) -> None:
        self.slot_id = slot_id
        self.log = log
        self.dead = False
        self.answers: dict[str, Any] = {
            "choose_port": ("127.0.0.1", 1),
            "join_training": Joined(num_steps=0),
            "load_trainer": 0,
            "step": STEPPED,
            "copy_between_steps": Copied(),
            "send_weights": lambda version, base, needed: SentPart(
                sender=slot_id, num_bytes=8, num_whole_bytes=8, fingerprint=version
            ),
            "take_weights": lambda offers, *cargo: Receipt(
                version=offers[-1].version, fingerprint=offers[-1].fingerprint, load_s=0.0
            ),
        }
        self.arguments: dict[str, list[tuple[Any, ...]]] = {}
        self._pending: set[asyncio.Future[Any]] = set()

    def __getattr__(self, method: str) -> FakeMethod:
        return FakeMethod(self, method)

    def kill(self) -> None:
        """The process is gone: calls that wait, and all later ones, fail."""
        self.dead = True
        for future in self._pending:
            if not future.done():
                future.set_exception(RayActorError())

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self.dead:
            raise RayActorError()
        self.log.append((self.slot_id, method))
        self.arguments.setdefault(method, []).append(arguments)
        found = self.answers.get(method)
        if isinstance(found, asyncio.Future):
            self._pending.add(found)
            return await found
        if isinstance(found, Exception):
            raise found
        return found(*arguments) if callable(found) else found


class FakeMethod:
    def __init__(self, worker: FakeWorker, method: str) -> None:
        self._worker, self._method = worker, method

    def remote(self, *arguments: Any) -> Any:
        call = self._worker.call(self._method, arguments)
        if self._method == "send_weights":  # two values: what receivers are given, and what the controller is told
            return f"version {arguments[0]} from {self._worker.slot_id}", call
        return call


class FakeReplica(FakeWorker):
    """A worker in the rollout role: holds requests until the test finishes them."""

    def __init__(self, slot_id: str, log: list[tuple[str, str]]) -> None:
        super().__init__(slot_id, log)
        self.held: dict[str, Any] = {}
        self.outbox: list[RequestOutput] = []
        self.closed = False
        self.busy_s = 0.0
        self.num_generated_tokens = 0
        self.first_token_ago_s: float | None = None
        self.changed = asyncio.Event()
        self.answers |= {"submit": self._submit, "abort": self._abort, "stop_rollout": self._stop}

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if method != "collect":
            return await super().call(method, arguments)
        if arguments[0] and not (self.outbox or self.closed or self.dead):
            self.changed.clear()
            await self.changed.wait()
        if self.dead:
            raise RayActorError()
        outputs, self.outbox = tuple(self.outbox), []
        told = replace(
            stats(),
            busy_s=self.busy_s,
            first_token_ago_s=self.first_token_ago_s,
            num_generated_tokens=self.num_generated_tokens,
        )
        return Collected(outputs=outputs, stats=told, closed=self.closed)

    def finish(self, request_id: str) -> None:
        """Answer a request with one token for each sample."""
        del self.held[request_id]
        self.outbox.append(output(request_id, FinishReason.STOP))
        self.changed.set()

    def kill(self) -> None:
        super().kill()
        self.changed.set()

    def _submit(self, requests: list[Any]) -> None:
        self.held |= {request.id: request for request in requests}

    def _abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            del self.held[request_id]
            self.outbox.append(output(request_id, FinishReason.ABORT))
        self.changed.set()

    def _stop(self) -> tuple[RequestOutput, ...]:
        self.closed = True
        self.changed.set()
        return tuple(output(request_id, FinishReason.ABORT) for request_id in self.held)


class FakeFleet:
    """Workers by slot."""

    def __init__(self, slot_ids: tuple[str, ...], kind: type[FakeWorker] = FakeWorker) -> None:
        self.log: list[tuple[str, str]] = []
        self.kind = kind
        self.workers = {slot_id: kind(slot_id, self.log) for slot_id in slot_ids}
        self.ended: set[str] = set()
        self.reasons: dict[str, str] = {}
        self.used_s: dict[str, float] = {}
        """Processor time of the workers that can be seen."""
        self.running: set[str] = set()
        """Workers with a thread that would run."""
        self.stopped: set[str] = set()
        """Workers that a signal has stopped."""
        self.restart_failures: list[Exception] = []

    def __getitem__(self, slot_id: str) -> FakeWorker:
        if slot_id in self.ended:
            raise WorkerLostError(self.reasons.get(slot_id, f"the worker of {slot_id} was ended"))
        return self.workers[slot_id]

    def share(self, value: Any) -> Any:
        return value

    @property
    def ready(self) -> tuple[str, ...]:
        return tuple(slot_id for slot_id in self.workers if slot_id not in self.ended)

    def processor_s(self, slot_id: str) -> float | None:
        return self.used_s.get(slot_id)

    def reason(self, slot_id: str) -> str | None:
        return self.reasons.get(slot_id)

    def kill(self, slot_id: str, reason: str | None = None) -> None:
        self.log.append((slot_id, "KILL"))
        self.ended.add(slot_id)
        if reason is not None:
            self.reasons[slot_id] = reason
        self.workers[slot_id].kill()

    def info(self, slot_id: str) -> WorkerInfo:
        return WorkerInfo(slot_id=slot_id, process_id=1, host="here")

    async def start(self, slots: Iterable[tuple[Slot, WorkerSpec]]) -> None:
        for slot, _ in slots:
            self.log.append((slot.id, "START"))
            self.workers[slot.id] = self.kind(slot.id, self.log)

    def is_ready_to_run(self, slot_id: str) -> bool:
        return slot_id in self.running

    def is_stopped(self, slot_id: str) -> bool:
        return slot_id in self.stopped

    async def recover(
        self, slot_ids: Sequence[str], *, on_restart: Callable[[str], None] = lambda _: None
    ) -> tuple[str, ...]:
        lost = tuple(slot_id for slot_id in slot_ids if self.workers[slot_id].dead) or (slot_ids[0],)
        for slot_id in lost:
            on_restart(slot_id)
            self.log.append((slot_id, "RESTART"))
            if self.restart_failures:
                raise self.restart_failures.pop()
            self.workers[slot_id] = self.kind(slot_id, self.log)
            self.ended.discard(slot_id)
        return lost


def make_gang(*slot_ids: str, node_id: str | None = None) -> Gang:
    """A gang of CPU slots."""
    slots = tuple(
        Slot(id=slot_id, type=slot_type("cpu"), prefer=None, num_threads=1, node_id=node_id) for slot_id in slot_ids
    )
    return Gang(id="+".join(slot_ids), slots=slots)


class FakeClock(RunClock):
    """Seconds that the test counts."""

    def __init__(self, now_s: float) -> None:
        super().__init__(started=0.0, read=lambda: self.now_s)
        self.now_s = now_s


class FakeTracker:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.shown: list[Any] = []

    def show(self, state: Any) -> None:
        self.shown.append(state)

    def record(self, record: Any) -> None:
        self.records.append(record)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append((step, metrics))


def run_context(tasks: asyncio.TaskGroup | None = None, clock: RunClock | None = None) -> RunContext:
    """What the parts of a run share; without ``tasks``, nothing can run in the background."""
    return RunContext(
        clock=clock or RunClock(started=time.monotonic()),
        counters=Counters(),
        events=EventBus(),
        changed=Signal(),
        tasks=tasks or asyncio.TaskGroup(),
    )


EventT = TypeVar("EventT", bound=ControllerEvent | Record)


def recorded(events: EventBus, kind: type[EventT]) -> list[EventT]:
    """A list that every event of ``kind`` is appended to."""
    found: list[EventT] = []
    events.subscribe(kind, found.append)
    return found


def stats() -> RolloutStats:
    return RolloutStats(
        weight_version=0,
        num_running=0,
        num_waiting=0,
        kv_cache_usage=0.0,
        num_generated_tokens=0,
        num_preemptions=0,
        prefix_cache_hit_rate=0.0,
        num_steps=0,
    )


def output(request_id: str, reason: FinishReason, num_samples: int = 1) -> RequestOutput:
    samples = tuple(
        SampleOutput(
            index=index,
            tokens=GeneratedTokens.of([7], [-1.0], [-1.0], [0]),
            finish_reason=reason,
        )
        for index in range(num_samples)
    )
    return RequestOutput(request_id=request_id, samples=samples)


async def settled() -> None:
    """Let every task run until all of them wait."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread, or a loop with an interval of its own, brings about."""
    while not condition():
        await asyncio.sleep(0.001)


@contextmanager
def unfinished(worker: FakeWorker, method: str) -> Iterator[asyncio.Future[Any]]:
    """While it lasts, calls of ``method`` wait for the future."""
    before = worker.answers.get(method)
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    worker.answers[method] = future
    yield future
    worker.answers[method] = before
