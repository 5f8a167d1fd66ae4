"""Workers on virtual time that do what the real ones promise, and fall over on demand.

They record what was asked of them and check what must hold from where they stand: one role at a time, or the other one
asleep; weights that never go back, tokens of no newer version than their replica's, every step of the trainers on the
same batch.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from controller_fakes import stats
from simulated_process import SimulatedProcess
from simulated_streams import SimulatedStreams
from simulated_world import Meeting, World

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.errors import WorkerFailedError
from rlserve.pool.base import Collected, Copied, Copies, Joined, MemoryChange, Stepped, Streamed
from rlserve.tracking import names
from rlserve.trainers.base import Membership
from rlserve.trainers.batch import Batch
from rlserve.weights.canary import CanaryScores
from rlserve.weights.offer import Holding, Offer, Receipt, SentPart, TrainedWeights

TRAINER_FILE = "trainer.json"
_METRICS = {"training/log_prob_diff_mean": 0.0, names.REWARD: 0.5}


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


class SimulatedWorker(SimulatedProcess):
    """A process with both roles. ``wedge`` stops its engine alone."""

    def __init__(self, world: World, slot_id: str) -> None:
        super().__init__(world, slot_id)
        self.wedged = False
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
        self.streams = SimulatedStreams(self._read)
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

    def kill(self) -> None:
        super().kill()
        for running in self.running.values():
            if running.timer is not None:
                running.timer.cancel()
        if self.meeting is not None:
            self.meeting.broken.set()

    def wedge(self) -> None:
        """Its engine makes no step any more; the process answers."""
        self.wedged = True

    # -- rollout ---------------------------------------------------------------------------------------------

    async def do_start_rollout(self, place: None) -> None:
        assert self.sleeping or not self.training, f"{self.slot_id} trains"
        assert not self.rolling_out, f"{self.slot_id} serves already"
        await asyncio.sleep(self.world.speeds.switch_s)
        self.rolling_out, self.closed, self.version, self.holding = True, False, -1, None
        self.streams = SimulatedStreams(self._read)
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

    async def do_submit_streamed(self, requests: list[Request]) -> None:
        await self.do_submit(requests)
        self.streams.follow(requests)

    async def do_stream(self, timeout_s: float) -> Streamed:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while not (deltas := self.streams.news()) and not self.closed and loop.time() < until_s:
            await asyncio.sleep(self.world.speeds.token_s)
        return Streamed(deltas=deltas, closed=self.closed)

    def _read(self, request_id: str) -> RequestOutput | None:
        if (running := self.running.get(request_id)) is None:
            return None
        self._advance(running)
        return _output(running, FinishReason.ABORT)

    def _answer(self, output: RequestOutput) -> None:
        if not self.streams.end(output):
            self.outbox.append(output)

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
            self._answer(_output(running, FinishReason.ABORT))
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
        self._answer(_output(running, FinishReason.STOP))
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
        self.streams.break_off(partials)
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

    async def do_join_training(self, place: Membership, loads_model: bool, is_newcomer: bool) -> Joined:
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
        return Joined(num_steps=len(self.batches))

    async def do_load_trainer(self, folder: Path) -> int:
        saved = json.loads((folder / TRAINER_FILE).read_text())
        self.batches = tuple(tuple(batch) for batch in saved)
        return len(self.batches)

    async def do_step(self, batch: Batch, copies: Copies) -> Stepped:
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
        return Stepped(metrics=_METRICS, copied=await self.do_copy_between_steps(copies))

    async def do_evaluate(self, batch: Batch) -> dict[str, float]:
        assert self.training, f"{self.slot_id} does not train"
        assert self.place is not None
        assert self.batches is not None
        key = ("evaluate", self.place.generation, len(self.batches))
        self.meeting = self.world.meeting(key, self.place.num_ranks)
        await self.meeting.meet(self, self.world.speeds.step_s / self.place.num_ranks)
        return {"loss": 1.0 / (1 + len(self.batches))}

    async def do_last_metrics(self) -> dict[str, float]:
        return _METRICS

    async def do_copy_between_steps(self, copies: Copies) -> Copied:
        assert self.training, f"{self.slot_id} does not train"
        assert not self.sleeping, f"{self.slot_id} sleeps"
        assert self.batches is not None
        assert self.place is not None
        if copies.state:
            self.copied = (self.place.rank, json.dumps(self.batches))
        version = copies.version
        if version is None:
            return Copied()
        assert len(self.batches) == version, f"{len(self.batches)} steps make no version {version}"
        self.snapshots.add(version)
        return Copied(canary=self.world.canary_of(version))

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

    async def do_write_state(self, folder: Path) -> None:
        assert self.copied is not None, f"{self.slot_id} has copied nothing"
        (rank, batches), self.copied = self.copied, None
        await asyncio.sleep(self.world.chance.uniform(0.0, self.world.speeds.step_s))
        if rank == 0:
            (folder / TRAINER_FILE).write_text(batches)


def _output(running: _Running, reason: FinishReason) -> RequestOutput:
    zeros = [0.0] * len(running.versions)
    tokens = GeneratedTokens.of(range(len(running.versions)), zeros, zeros, running.versions)
    samples = tuple(
        SampleOutput(index=index, tokens=tokens, finish_reason=reason) for index in range(running.request.sampling.n)
    )
    return RequestOutput(request_id=running.request.id, samples=samples)
