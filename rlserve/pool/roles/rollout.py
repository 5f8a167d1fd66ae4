"""The rollout role of a worker: an engine that runs in a thread of its own.

::

    submit (queues) / load_weights / stop (wait) ──► commands ──►┐
                                                                 │  between two steps
                                                  engine.step() ◄┘
                                                       │
                                                       ▼
    collect (long poll) ◄───────────────────────── outbox

Only the engine's thread touches the engine. Everything else reaches it as a command that runs between two
steps, so a new version of the weights is swapped in at a step boundary by construction. The thread sleeps on
the condition while there is neither work nor a command.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from rlserve.engine import Engine, Request, RequestOutput
from rlserve.engine.stats.metrics import vllm_metrics
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WorkerFailedError
from rlserve.pool.base import Collected, RolloutStats
from rlserve.weights.base import Receipt
from rlserve.weights.snapshot import WeightSnapshot, unpack

logger = logging.getLogger(__name__)
T = TypeVar("T")


class RolloutRole:
    """Serves requests with one engine until it is stopped.

    The engine outlives the role: a worker that returns to rollout makes a new one on the same, warm engine.
    The first version of the weights must be loaded before the first request.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._outbox: list[RequestOutput] = []
        self._unfinished: set[str] = set()
        self._num_steps = 0
        self._busy_s = 0.0
        self._stats = self._read_stats()
        self._running = True
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def load_weights(self, snapshot: WeightSnapshot) -> Receipt:
        """Check a version beside the running model, copy it in between two steps, and prove what is loaded."""
        tensors = unpack(snapshot)

        def swap() -> Receipt:
            start = time.perf_counter()
            self._engine.load_weights(snapshot.version, tensors)
            loaded = fingerprint(self._engine.named_weights())
            return Receipt(version=self._engine.weight_version, fingerprint=loaded, load_s=time.perf_counter() - start)

        return self._call(swap)

    def submit(self, requests: list[Request]) -> None:
        """Queue a batch of requests, which the engine has from its next step on. Does not wait for that: the step
        under way may be a long one, or compile.

        Raises:
            WorkerFailedError: the engine stopped, or the role is being given up.
        """

        def add() -> None:
            for request in requests:
                self._unfinished.add(request.id)
                self._engine.add(request)

        with self._changed:
            self._raise_failure()
            if self._stopping:
                raise WorkerFailedError("the rollout role is being given up: it takes no more requests")
            self._commands.append(add)
            self._changed.notify_all()

    def collect(self, timeout_s: float) -> Collected:
        """Outputs since the last call; waits up to ``timeout_s`` for the first one."""
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or not self._running or self._failure, timeout_s)
            self._raise_failure()
            outputs, self._outbox = tuple(self._outbox), []
            return Collected(outputs=outputs, stats=self._stats, closed=not self._running)

    def stop(self) -> tuple[RequestOutput, ...]:
        """Give the role up: unfinished requests come back with their tokens, and the engine's memory is freed, that of
        the weights too: whoever takes the role again gets the newest ones anyhow.

        Outputs that finished before are still handed out by ``collect``, each exactly once.
        """

        def finish() -> tuple[RequestOutput, ...]:
            partials = tuple(self._engine.abort(sorted(self._unfinished)))
            last_outputs: list[RequestOutput] = []
            while self._engine.has_work:  # outputs that the next step would have handed out
                last_outputs += self._engine.step()
            with self._changed:
                self._outbox += last_outputs
            self._engine.release_memory(weights=True)
            self._engine.check_integrity()
            self._running = False
            return partials

        with self._changed:
            self._stopping = True  # what was submitted before is in the queue before ``finish``
        partials = self._call(finish)
        self._thread.join()
        return partials

    # -- the engine's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._running:
                with self._changed:
                    self._changed.wait_for(lambda: self._commands or self._engine.has_work)
                self._run_commands()
                outputs: list[RequestOutput] = []
                if self._running and self._engine.has_work:
                    start = time.perf_counter()
                    outputs = self._engine.step()
                    self._busy_s += time.perf_counter() - start
                    self._num_steps += 1
                    self._unfinished.difference_update(output.request_id for output in outputs)
                with self._changed:
                    self._stats = self._read_stats()
                    if outputs:
                        self._outbox.extend(outputs)
                        self._changed.notify_all()
        except BaseException as error:
            logger.exception("the engine stopped")
            self._failure = error
        with self._changed:
            self._changed.notify_all()

    def _run_commands(self) -> None:
        """Run the commands that wait; those behind a ``stop`` stay, and their callers hear that it came first."""
        while self._running:
            with self._changed:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command()

    def _call(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the engine's thread between two steps and return what it returns."""
        future: Future[T] = Future()

        def command() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._changed:
            self._raise_failure()
            self._commands.append(command)
            self._changed.notify_all()
        while True:
            try:
                return future.result(timeout=1.0)
            except TimeoutError:
                if not self._thread.is_alive() and not future.done():
                    self._raise_failure()
                    raise WorkerFailedError("the rollout role was given up before the call ran") from None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise WorkerFailedError(f"the engine stopped: {self._failure!r}") from self._failure

    def _read_stats(self) -> RolloutStats:
        stats = self._engine.stats()
        return RolloutStats(
            weight_version=stats.weight_version,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_cache_usage=stats.kv_cache_usage,
            num_generated_tokens=stats.num_generated_tokens,
            num_preemptions=stats.num_preemptions,
            prefix_cache_hit_rate=stats.prefix_hit_rate,
            num_steps=self._num_steps,
            busy_s=self._busy_s,
            engine_metrics=vllm_metrics(stats),
        )
