"""Workers on virtual time that do what the real ones promise, and fall over on demand.

They record what was asked of them and check what must hold from where they stand: one role at a time, or the other one
asleep; weights that never go back, tokens of no newer version than their replica's, every step of the trainers on the
same batch.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controller_fakes import stats

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.pool.base import Collected, MemoryChange, SignOfLife, WorkerInfo, WorkerSpec
from rlserve.pool.notices.base import Notice
from rlserve.pool.slots import Slot
from rlserve.tracking import names
from rlserve.trainers.base import Membership
from rlserve.trainers.batch import Batch
from rlserve.weights.canary import CanaryScores
from rlserve.weights.offer import Holding, Offer, Receipt, SentPart, TrainedWeights

_PEER_TIMEOUT_S = 5.0
TRAINER_FILE = "trainer.json"


def always(_: float) -> float:
    """The same load at any time."""
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """How long things take, in virtual seconds."""

    start_s: float = 5.0
    switch_s: float = 0.5
    step_s: float = 4.0
    """A training step on one rank."""
    token_s: float = 0.02
    load: Callable[[float], float] = always
    """Factor on ``token_s`` by the time."""


class Meeting:
    """Where all ranks of a group come together, or none."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.workers: list[SimulatedWorker] = []
        self.complete = asyncio.Event()
        self.broken = asyncio.Event()
        self._waited_for = asyncio.Event()
        """All have come, or nobody waits for them any more."""

    def break_off(self) -> None:
        """Nobody waits for those who have not come."""
        self._waited_for.set()

    async def meet(self, worker: SimulatedWorker, seconds: float) -> None:
        """Return when all have come and ``seconds`` have passed.

        Raises:
            WorkerFailedError: one did not come, or died meanwhile.
        """
        self.workers.append(worker)
        if len(self.workers) == self.size and not self._waited_for.is_set():
            self.complete.set()
            self._waited_for.set()
        try:
            async with asyncio.timeout(_PEER_TIMEOUT_S):
                await self._waited_for.wait()
            if not self.complete.is_set():
                raise TimeoutError
            await asyncio.wait_for(self.broken.wait(), seconds)
        except TimeoutError:
            if self.complete.is_set() and not self.broken.is_set():
                return
        raise WorkerFailedError(f"{worker.slot_id}: a peer is gone")


@dataclass(kw_only=True)
class _Running:
    """A request in an engine: ``versions`` are of the tokens so far, each of which takes ``token_s``."""

    request: Request
    length: int
    versions: list[int]
    begun_s: float
    num_before: int
    token_s: float
    timer: asyncio.TimerHandle | None = None


class SimulatedWorker:
    """One process. ``kill`` ends it; ``hang`` lets it answer nothing any more; ``wedge`` stops its engine alone."""

    def __init__(self, world: World, slot_id: str) -> None:
        self.world = world
        self.slot_id = slot_id
        self.dead = self.hung = self.wedged = False
        self.notice: Notice | None = None
        """What it was told."""
        self._calls: set[asyncio.Future[Any]] = set()
        self.rolling_out = self.training = self.closed = False
        self.sleeping = False
        """It trains, and serves meanwhile."""
        self.miscomputes = 0
        """By how much its engine's log-probabilities are wrong."""
        self.garbled = False
        """Its engine loads other weights than its trainer has."""
        self.version = -1
        self.holding: Holding | None = None
        """What it can apply a delta to."""
        self.sent: Holding | None = None
        """What it can send a delta to."""
        self.running: dict[str, _Running] = {}
        self.outbox: list[RequestOutput] = []
        self.changed = asyncio.Event()
        self.num_tokens = 0
        self.busy_s = self.running_s = 0.0
        self._counted_s = 0.0
        """Until when they are counted."""
        self.batches: tuple[tuple[str, ...], ...] | None = None
        """Sample ids of every step that the trainer has completed."""
        self.snapshots: set[int] = set()
        self.copied: tuple[int, str] | None = None
        """Versions of the weights that are to be sent."""
        self.place: Membership | None = None
        self.meeting: Meeting | None = None

    def __getattr__(self, method: str) -> SimulatedMethod:
        if method.startswith("do_"):
            raise AttributeError(method)
        return SimulatedMethod(self, method)

    def kill(self) -> None:
        """The process is gone: calls that wait, and all later ones, fail."""
        self.dead = True
        for call in self._calls:
            if not call.done():
                call.set_exception(WorkerLostError(f"{self.slot_id}: its process died"))
        for running in self.running.values():
            if running.timer is not None:
                running.timer.cancel()
        if self.meeting is not None:
            self.meeting.broken.set()

    def hang(self) -> None:
        """Stopped, as by SIGSTOP."""
        self.hung = True

    def wedge(self) -> None:
        """Its engine makes no step any more; the process answers."""
        self.wedged = True

    def call(self, method: str, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Begin a call."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        if self.dead:
            result.set_exception(WorkerLostError(f"{self.slot_id}: its process died"))
            return result
        self._calls.add(result)
        result.add_done_callback(self._calls.discard)
        if not self.hung:
            task = loop.create_task(self._do(method, arguments, result))
            self.world.tasks.add(task)
            task.add_done_callback(self.world.tasks.discard)
        return result

    async def _do(self, method: str, arguments: tuple[Any, ...], result: asyncio.Future[Any]) -> None:
        try:
            found = await getattr(self, f"do_{method}")(*arguments)
        except WorkerFailedError as error:
            found = error
        except Exception as error:  # a check of this file: the test must fail on it
            self.world.faults.append(error)
            found = error
        if result.done() or self.hung:
            return
        if isinstance(found, Exception):
            result.set_exception(found)
        else:
            result.set_result(found)

    async def do_sign_of_life(self, wait_s: float) -> SignOfLife:
        await asyncio.sleep(wait_s)
        return SignOfLife(notice=self.notice)

    # -- rollout ---------------------------------------------------------------------------------------------

    async def do_start_rollout(self, place: None) -> None:
        assert self.sleeping or not self.training, f"{self.slot_id} trains"
        assert not self.rolling_out, f"{self.slot_id} serves already"
        await asyncio.sleep(self.world.speeds.switch_s)
        self.rolling_out, self.closed, self.version, self.holding = True, False, -1, None
        self.busy_s = self.running_s = 0.0

    async def do_take_weights(self, offers: Sequence[Offer], *cargo: int) -> Receipt:
        assert self.rolling_out, f"{self.slot_id} does not serve"
        assert cargo == tuple(offer.version for offer in offers), "the cargo of another version"
        held = self.holding
        for offer in offers:
            assert offer.base in (None, held), f"{self.slot_id} holds {held}, not {offer.base}"
            held = offer.holding
        offer = offers[-1]
        await asyncio.sleep(self.world.chance.uniform(0.0, 2 * self.world.speeds.switch_s))
        is_newer = offer.version > self.version or (self.miscomputes and offer.version == self.version)
        assert is_newer, f"{self.slot_id} goes back from version {self.version} to {offer.version}"
        for running in self.running.values():
            self._advance(running)
        self.version, self.holding = offer.version, held
        if self.world.recompute_s is not None and not self.wedged:
            for running in self.running.values():
                self._pause(running, self.world.recompute_s)
        return Receipt(version=offer.version, fingerprint=offer.fingerprint, load_s=0.0)

    async def do_take_own_weights(self, version: int) -> Receipt:
        assert self.rolling_out, f"{self.slot_id} does not serve"
        assert self.sleeping, f"{self.slot_id} has no trainer that sleeps"
        assert self.batches is not None
        await asyncio.sleep(self.world.chance.uniform(0.0, 2 * self.world.speeds.switch_s))
        self.version = len(self.batches)
        return Receipt(version=self.version, fingerprint=7 if self.garbled else 1000 + self.version, load_s=0.0)

    async def do_score_canary(self, version: int) -> CanaryScores:
        if not self.rolling_out:  # it has left since it took the version
            raise WorkerFailedError(f"{self.slot_id} does not have the rollout role")
        assert version == self.version, f"{self.slot_id} has version {self.version}, not {version}"
        return self.world.canary_of(version + self.miscomputes)

    async def do_submit(self, requests: list[Request]) -> None:
        assert self.rolling_out, f"{self.slot_id} does not serve"
        for request in requests:
            self._begin(request)

    def _begin(self, request: Request) -> None:
        assert request.id not in self.running, f"{request.id} was given twice"
        versions = list(request.resumed[0].weight_versions) if request.resumed else []
        self.world.num_kept_tokens += len(versions)
        assert max(versions, default=0) <= self.version, f"{request.id} has tokens of newer weights than {self.slot_id}"
        loop, name = asyncio.get_running_loop(), request.id.rpartition("#")[0]
        length = random.Random(f"{name}").randint(*self.world.lengths)
        token_s = self.world.speeds.token_s * self.world.speeds.load(loop.time())
        running = _Running(
            request=request,
            length=length,
            versions=versions,
            begun_s=loop.time(),
            num_before=len(versions),
            token_s=token_s,
        )
        self._count()
        self.running[request.id] = running
        if not self.wedged:
            left_s = (length - len(versions)) * token_s
            running.timer = loop.call_later(max(left_s, 0.0), self._finish, request.id)

    async def do_abort(self, request_ids: Sequence[str]) -> None:
        assert self.rolling_out, f"{self.slot_id} does not serve"
        self._count()
        for request_id in request_ids:
            if (running := self.running.pop(request_id, None)) is None:
                continue  # it ended by itself
            self._advance(running)
            if running.timer is not None:
                running.timer.cancel()
            self.outbox.append(_output(running, FinishReason.ABORT))
        self.changed.set()

    def _count(self) -> None:
        """Add the time up to now, in which the engine had the same requests; called before that changes."""
        now_s, num_samples = asyncio.get_running_loop().time(), self._num_samples
        if num_samples and not self.wedged:
            self.busy_s += now_s - self._counted_s
            self.running_s += num_samples * (now_s - self._counted_s)
        self._counted_s = now_s

    @property
    def _num_samples(self) -> int:
        return sum(running.request.sampling.n for running in self.running.values())

    def _advance(self, running: _Running) -> None:
        """Give the tokens made until now their version."""
        if self.wedged:
            return
        elapsed_s = asyncio.get_running_loop().time() - running.begun_s
        number = min(running.num_before + int(elapsed_s / running.token_s), running.length - 1)
        running.versions += [self.version] * (number - len(running.versions))

    def _pause(self, running: _Running, seconds: float) -> None:
        """Its keys and values are computed anew: no token comes meanwhile, and none is lost."""
        assert running.timer is not None
        running.timer.cancel()
        loop = asyncio.get_running_loop()
        running.begun_s, running.num_before = loop.time() + seconds, len(running.versions)
        left_s = seconds + (running.length - running.num_before) * running.token_s
        running.timer = loop.call_later(left_s, self._finish, running.request.id)

    def _finish(self, request_id: str) -> None:
        if self.dead or self.hung or self.wedged:
            return
        self._count()
        running = self.running.pop(request_id)
        running.versions += [self.version] * (running.length - len(running.versions))
        self.num_tokens += running.length * running.request.sampling.n
        self.outbox.append(_output(running, FinishReason.STOP))
        self.changed.set()

    async def do_collect(self, timeout_s: float) -> Collected:
        if timeout_s and not (self.outbox or self.closed):
            self.changed.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self.changed.wait()
            except TimeoutError:
                pass
        outputs, self.outbox = tuple(self.outbox), []
        num_steps = 0 if self.wedged else int(asyncio.get_running_loop().time() * 100)
        self._count()
        now = replace(
            stats(),
            num_running=self._num_samples,
            num_steps=num_steps,
            num_generated_tokens=self.num_tokens,
            busy_s=self.busy_s,
            running_s=self.running_s,
        )
        return Collected(outputs=outputs, stats=now, closed=self.closed)

    async def do_stop_rollout(self) -> tuple[RequestOutput, ...]:
        await asyncio.sleep(self.world.speeds.switch_s)
        for running in self.running.values():
            self._advance(running)
            if running.timer is not None:
                running.timer.cancel()
        partials = tuple(_output(running, FinishReason.ABORT) for running in self.running.values())
        self.world.num_returned_tokens += sum(len(running.versions) for running in self.running.values())
        self._count()
        self.running.clear()
        self.closed, self.rolling_out = True, False
        self.changed.set()
        return partials

    async def do_rollout_ended(self) -> MemoryChange:
        assert not self.outbox, "what had finished was collected"
        return MemoryChange(before_bytes=300, after_bytes=100)

    # -- training --------------------------------------------------------------------------------------------

    async def do_choose_port(self, on_one_machine: bool) -> tuple[str, int]:
        return "127.0.0.1", 1

    async def do_prepare_training(self) -> None:
        assert not self.rolling_out, f"{self.slot_id} serves"
        assert not self.training, f"{self.slot_id} trains already"

    async def do_meet_trainers(self, place: Membership) -> None:
        await self.world.meeting(("meet", place.generation), place.num_ranks).meet(self, self.world.speeds.switch_s)

    async def do_break_off_group(self, generation: int) -> None:
        self.world.break_off(generation)

    async def do_join_training(self, place: Membership, loads_model: bool, is_newcomer: bool) -> int:
        assert not self.rolling_out, f"{self.slot_id} serves"
        self.training, self.sleeping, self.place = True, False, place
        if loads_model:
            self.batches = ()
        elif is_newcomer:
            self.batches = None
        self.meeting = self.world.meeting(("join", place.generation), place.num_ranks)
        await self.meeting.meet(self, self.world.speeds.switch_s)
        held = [worker.batches for worker in self.meeting.workers if worker.batches is not None]
        self.batches = max(held, key=len)  # a step that one of them has completed is completed for all
        assert all(self.batches[: len(other)] == other for other in held), "ranks have trained on different batches"
        return len(self.batches)

    async def do_load_trainer(self, folder: Path) -> int:
        saved = json.loads((folder / TRAINER_FILE).read_text())
        self.batches = tuple(tuple(batch) for batch in saved)
        return len(self.batches)

    async def do_step(self, batch: Batch) -> dict[str, float]:
        assert self.training, f"{self.slot_id} does not train"
        assert not self.sleeping, f"{self.slot_id} sleeps"
        assert self.place is not None
        assert self.batches is not None
        key = ("step", self.place.generation, len(self.batches))
        self.meeting = self.world.meeting(key, self.place.num_ranks)
        try:
            await self.meeting.meet(self, self.world.speeds.step_s / self.place.num_ranks)
        except WorkerFailedError:
            if not self.meeting.complete.is_set() or self.world.chance.random() < 0.7:
                raise  # else this rank had just completed it
        self.batches = (*self.batches, batch.sample_ids)
        return _METRICS

    async def do_last_metrics(self) -> dict[str, float]:
        return _METRICS

    async def do_snapshot_weights(self, version: int) -> CanaryScores:
        assert self.training, f"{self.slot_id} does not train"
        assert self.batches is not None
        assert len(self.batches) == version, f"{len(self.batches)} steps make no version {version}"
        self.snapshots.add(version)
        return self.world.canary_of(version)

    async def do_drop_snapshot(self, version: int) -> None:
        self.snapshots.discard(version)

    async def do_send_weights(self, version: int, base: Holding | None, needed: Sequence[int]) -> SentPart:
        assert version in self.snapshots, f"{self.slot_id} has no snapshot of version {version}"
        await asyncio.sleep(self.world.chance.uniform(0.0, self.world.speeds.switch_s))
        self.snapshots.discard(version)
        known, self.sent = base if base == self.sent else None, Holding(version=version, fingerprint=1000 + version)
        return SentPart(sender=self.slot_id, num_bytes=1, num_whole_bytes=9, fingerprint=1000 + version, base=known)

    async def do_discard_weights(self) -> None:
        pass

    async def do_leave_training(self) -> None:
        self.training, self.batches = False, None

    async def do_sleep_training(self) -> MemoryChange:
        assert self.training, f"{self.slot_id} does not train"
        await asyncio.sleep(self.world.speeds.switch_s)
        self.sleeping = True
        return MemoryChange(before_bytes=200, after_bytes=150)

    async def do_wake_training(self) -> None:
        assert not self.rolling_out, f"{self.slot_id} serves"
        assert self.training, f"{self.slot_id} does not train"
        await asyncio.sleep(self.world.speeds.switch_s)
        self.sleeping = False

    async def do_describe_weights(self, version: int) -> TrainedWeights:
        assert self.batches is not None
        assert len(self.batches) == version, f"{len(self.batches)} steps make no version {version}"
        return TrainedWeights(fingerprint=1000 + version, canary=self.world.canary_of(version))

    async def do_copy_state(self) -> None:
        assert not self.sleeping, f"{self.slot_id} sleeps"
        assert self.place is not None
        self.copied = (self.place.rank, json.dumps(self.batches))

    async def do_write_state(self, folder: Path) -> None:
        assert self.copied is not None, f"{self.slot_id} has copied nothing"
        (rank, batches), self.copied = self.copied, None
        await asyncio.sleep(self.world.chance.uniform(0.0, self.world.speeds.step_s))
        if rank == 0:
            (folder / TRAINER_FILE).write_text(batches)


_METRICS = {"training/log_prob_diff_mean": 0.0, names.REWARD: 0.5}


class SimulatedMethod:
    """A method of a worker, called as Ray's are."""

    def __init__(self, worker: SimulatedWorker, method: str) -> None:
        self._worker, self._method = worker, method

    def remote(self, *arguments: Any) -> Any:
        call = self._worker.call(self._method, arguments)
        return (arguments[0], call) if self._method == "send_weights" else call  # the first is for receivers alone


def _output(running: _Running, reason: FinishReason) -> RequestOutput:
    zeros = [0.0] * len(running.versions)
    tokens = GeneratedTokens.of(range(len(running.versions)), zeros, zeros, running.versions)
    samples = tuple(
        SampleOutput(index=index, tokens=tokens, finish_reason=reason) for index in range(running.request.sampling.n)
    )
    return RequestOutput(request_id=running.request.id, samples=samples)


@dataclass(kw_only=True)
class World:
    """What all workers of a run have in common."""

    speeds: Speeds = field(default_factory=Speeds)
    lengths: tuple[int, int] = (20, 200)
    """Fewest and most tokens of an answer."""
    recompute_s: float | None = None
    """What it takes to compute the samples under way anew when new weights come; None keeps their KV."""
    seed: int = 0
    faults: list[Exception] = field(default_factory=list)
    """What the workers found wrong."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    meetings: dict[tuple[Any, ...], Meeting] = field(default_factory=dict)

    num_kept_tokens: int = 0
    """Tokens that requests brought along from another replica."""
    num_returned_tokens: int = 0
    """Tokens that requests had when their replica left."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def canary_of(self, version: int) -> CanaryScores:
        """What a trainer, and a sound engine, make of it."""
        return ((-float(version), -1.0),)

    def break_off(self, generation: int) -> None:
        """Groups up to this one do not come about."""
        for (_, number, *_), meeting in self.meetings.items():
            if number <= generation:
                meeting.break_off()

    def meeting(self, key: tuple[Any, ...], size: int) -> Meeting:
        """The one that all with the same key come to."""
        if len(self.meetings) > 8:
            del self.meetings[next(iter(self.meetings))]  # long over
        return self.meetings.setdefault(key, Meeting(size))


class SimulatedFleet:
    """One simulated worker for each slot."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.workers: dict[str, SimulatedWorker] = {}
        self._ready: set[str] = set()
        self._reasons: dict[str, str] = {}
        self.num_restarts = 0

    @property
    def ready(self) -> tuple[str, ...]:
        return tuple(slot_id for slot_id in self.workers if slot_id in self._ready)

    def __getitem__(self, slot_id: str) -> SimulatedWorker:
        if slot_id not in self.workers:
            raise WorkerLostError(self._reasons.get(slot_id) or f"the worker of {slot_id} was ended")
        return self.workers[slot_id]

    def share(self, value: Any) -> Any:
        return value

    def info(self, slot_id: str) -> WorkerInfo:
        return WorkerInfo(slot_id=slot_id, process_id=1, host="here")

    async def start(self, slots: Iterable[tuple[Slot, WorkerSpec]]) -> None:
        await asyncio.gather(*(self._start(slot.id) for slot, _ in slots))

    async def recover(self, slot_ids: Sequence[str], *, on_restart: Callable[[str], None]) -> tuple[str, ...]:
        (slot_id,) = slot_ids
        on_restart(slot_id)
        self.kill(slot_id)
        self._reasons.pop(slot_id, None)
        self.num_restarts += 1
        await self._start(slot_id)
        return (slot_id,)

    async def _start(self, slot_id: str) -> None:
        self.workers[slot_id] = SimulatedWorker(self.world, slot_id)
        await asyncio.sleep(self.world.speeds.start_s)
        self._ready.add(slot_id)

    def processor_s(self, slot_id: str) -> float | None:
        return None

    def is_ready_to_run(self, slot_id: str) -> bool:
        return False

    def reason(self, slot_id: str) -> str | None:
        return self._reasons.get(slot_id)

    def kill(self, slot_id: str, reason: str | None = None) -> None:
        worker = self.workers.pop(slot_id, None)
        self._ready.discard(slot_id)
        if reason is not None:
            self._reasons[slot_id] = reason
        if worker is not None:
            worker.kill()

    def close(self) -> None:
        for slot_id in list(self.workers):
            self.kill(slot_id)
