"""Ranks of a trainer as real processes, driven one call at a time over pipes."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forked import ForkedProcess

from rlserve.distributed.addresses import free_port


class Rank(ForkedProcess):
    """One process with one trainer in it. ``start`` sends a call, ``result`` waits for what came of it."""

    answer_s = 120.0

    def __init__(self) -> None:
        super().__init__(_serve)

    def start(self, method: str, *args: Any, **kwargs: Any) -> None:
        self.send((method, args, kwargs))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.start(method, *args, **kwargs)
        return self.result()


@contextmanager
def running_ranks(number: int) -> Iterator[list[Rank]]:
    """Start processes with one thread each; kill them at the end."""
    ranks = [Rank() for _ in range(number)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()


def call_all(ranks: Sequence[Rank], method: str, *args: Any) -> list[Any]:
    """The same call on all ranks at once; their results."""
    for rank in ranks:
        rank.start(method, *args)
    return [rank.result() for rank in ranks]


def create_all(ranks: Sequence[Rank], config: Any, algorithm: Any, model_path: str) -> None:
    """A trainer in each rank: rank 0 with weights, the others to receive theirs."""
    for index, rank in enumerate(ranks):
        rank.start("create", config, algorithm, model_path, load_weights=index == 0)
    for rank in ranks:
        rank.result()


def digest_alone(rank: Rank, config: Any, algorithm: Any, model_path: str, batches: Sequence[Any]) -> str:
    """The state after some steps on one rank."""
    create_all([rank], config, algorithm, model_path)
    for batch in batches:
        rank.call("step", batch)
    digest: str = rank.call("digest")
    return digest


class Meetings:
    """Hands out the place of the next group: a fresh port and generation each time."""

    def __init__(self) -> None:
        self.generation = 0

    def regroup(self, ranks: Sequence[Rank], *, num_leaving: int = 0) -> list[Any]:
        """Let all ranks resize into one group, in this order; what each says of the traffic."""
        self.start(ranks, len(ranks), num_leaving=num_leaving)
        return [rank.result() for rank in ranks]

    def meet(self, ranks: Sequence[Rank]) -> Sequence[Rank]:
        """Let all ranks begin to form their next group, in this order, in a thread beside what they do."""
        self.generation += 1
        port = free_port()
        for rank, process in enumerate(ranks):
            process.call("meet", rank, len(ranks), port, self.generation)
        return ranks

    def regroup_as_met(self, ranks: Sequence[Rank]) -> None:
        """Let all ranks resize into the group that has met; nobody serves another one."""
        for rank, process in enumerate(ranks):
            process.start("resize", rank, len(ranks), 1, self.generation)
        for process in ranks:
            process.result()

    def join(self, ranks: Sequence[Rank]) -> None:
        """Let ranks meet, and resize into the group that has met: state may still be on its way then."""
        self.meet(ranks)
        self.regroup_as_met(ranks)

    def start(self, ranks: Sequence[Rank], num_ranks: int, *, num_leaving: int = 0) -> None:
        """Begin a resize to ``num_ranks`` on some of the ranks."""
        self.generation += 1
        port = free_port()
        for rank, process in enumerate(ranks):
            process.start("resize", rank, num_ranks, port, self.generation, num_leaving)


def _place(rank: int, num_ranks: int, port: int, generation: int, num_leaving: int = 0) -> Any:
    from rlserve.trainers import Membership

    return Membership(
        rank=rank,
        num_ranks=num_ranks,
        host="127.0.0.1",
        port=port,
        generation=generation,
        secret="s",
        num_leaving=num_leaving,
    )


class _Served:
    """What a rank's process does for a test."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.trainer: Any = None
        self.meeting: threading.Thread | None = None

    def be_another_machine(self) -> None:
        """NCCL refuses two ranks on one GPU of one machine."""
        os.environ.update(NCCL_SOCKET_IFNAME="lo", NCCL_IB_DISABLE="1", NCCL_HOSTID=f"process-{os.getpid()}")

    def create(self, config: Any, algorithm: Any, model_path: str, load_weights: bool = True) -> None:
        from rlserve.trainers import create_trainer
        from rlserve.trainers.backends.pytorch import shards

        shards.LEAST_SHARD_ROWS = 1  # as many shards as are configured, small as the batches are
        self.trainer = create_trainer(config, algorithm, model_path=model_path, seed=0, load_weights=load_weights)

    def resize(self, rank: int, num_ranks: int, port: int, generation: int, num_leaving: int = 0) -> Any:
        if self.meeting is not None:
            self.meeting.join()
        return self.trainer.resize(_place(rank, num_ranks, port, generation, num_leaving))

    def meet(self, rank: int, num_ranks: int, port: int, generation: int) -> None:
        place = _place(rank, num_ranks, port, generation)
        self.meeting = threading.Thread(target=self.trainer.meet, args=(place,))
        self.meeting.start()

    def step(self, batch: Any) -> dict[str, float]:
        found: dict[str, float] = self.trainer.step(batch)
        return found

    def log_probs_alone(self, batch: Any) -> Any:
        return self.trainer.log_probs(batch, alone=True)

    def scores(self, batch: Any) -> tuple[bytes, bytes]:
        return self.trainer.log_probs(batch).tobytes(), self.trainer.values(batch).tobytes()

    def log_probs(self, batch: Any) -> Any:
        return self.trainer.log_probs(batch)

    def prepare(self) -> None:
        self.trainer.prepare()

    def leave(self) -> None:
        self.trainer.leave()

    def digest(self) -> str:
        """Of every bit of the state."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.trainer.state().items()):
            total.update(name.encode())
            total.update(tensor.cpu().numpy().tobytes())
        return total.hexdigest()

    def state(self) -> dict[str, Any]:
        return {name: tensor.cpu().numpy() for name, tensor in self.trainer.state().items()}

    def weights(self) -> dict[str, Any]:
        return {name: tensor.cpu().numpy() for name, tensor in self.trainer.weights().items()}

    def save_pretrained(self, folder: Path) -> None:
        self.trainer.save_pretrained(folder)

    def forget(self) -> None:
        """Leave what an earlier test has made, if anything."""
        if self.trainer is not None:
            self.trainer.leave()
            self.trainer = None

    def sleep_and_wake(self) -> None:
        self.trainer.sleep(offload=True)
        self.trainer.wake()

    def num_steps(self) -> int:
        steps: int = self.trainer.num_steps
        return steps

    def last_metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = self.trainer.last_metrics
        return metrics

    def copy_state(self) -> None:
        self.copied = self.trainer.copy_state()

    def write_state(self, folder: Path) -> None:
        self.copied.write(folder / "trainer", policy_folder=folder / "policy")

    def load_files(self, folder: Path) -> None:
        self.trainer.load_files(folder / "trainer")

    def signal_self_in(self, operation: str, signal_number: signal.Signals, *, num_before: int = 0) -> None:
        """After so many more of an ``operation`` of the group or the backend, this process sends itself the signal
        instead of the next."""
        original, numbers = getattr(self._owner(operation), operation), itertools.count()

        def counted(*args: Any, **options: Any) -> Any:
            if next(numbers) == num_before:
                os.kill(os.getpid(), signal_number)
            return original(*args, **options)

        self._replace(operation, counted)

    def raise_in(self, operation: str) -> None:
        """At the next ``operation`` of the group or the backend, this rank raises instead of taking part."""

        def fail(*_args: Any, **_options: Any) -> None:
            delattr(self._owner(operation), operation)
            raise MemoryError("out of memory on this rank alone")

        self._replace(operation, fail)

    def announce(self, operation: str) -> None:
        """At the next ``operation`` of the group or the backend, send its name before taking part."""
        owner = self._owner(operation)
        original = getattr(owner, operation)

        def announced(*args: Any, **options: Any) -> Any:
            delattr(owner, operation)
            self.pipe.send(operation)
            return original(*args, **options)

        self._replace(operation, announced)

    def hold_arrivals(self) -> None:
        """Let this rank send and receive nothing beside a step, until ``release_arrivals``."""
        self.is_released = threading.Event()
        self._before_transfers(lambda _number: self.is_released.wait())

    def release_arrivals(self) -> None:
        self.is_released.set()

    def signal_self_in_arrival(self, number: int, signal_number: signal.Signals) -> None:
        """In the place of a transfer beside a step, counted from 0, this process sends itself the signal."""

        def send(found: int) -> None:
            if found == number:
                os.kill(os.getpid(), signal_number)

        self._before_transfers(send)

    def has_arrived(self) -> bool:
        """Whether all that this rank is to send or receive beside a step has come in."""
        is_complete: bool = self.trainer._backend._arrival._is_complete
        return is_complete

    def _before_transfers(self, action: Callable[[int], object]) -> None:
        from rlserve.trainers.elastic.distributed import DistributedGroup

        original, numbers = DistributedGroup.all_to_all, itertools.count()

        def all_to_all(group: Any, *args: Any, **options: Any) -> Any:
            if threading.current_thread().name == "arrival":
                action(next(numbers))
            return original(group, *args, **options)

        DistributedGroup.all_to_all = all_to_all  # type: ignore[method-assign]

    def _replace(self, operation: str, replacement: Any) -> None:
        setattr(self._owner(operation), operation, replacement)

    def _owner(self, operation: str) -> Any:
        backend = self.trainer._backend
        return backend if hasattr(backend, operation) else backend._group


def _serve(pipe: Connection) -> None:
    served = _Served(pipe)
    while True:
        method, args, kwargs = pipe.recv()
        try:
            answer = getattr(served, method)(*args, **kwargs)
        except Exception as error:
            answer = error
        pipe.send(answer)
