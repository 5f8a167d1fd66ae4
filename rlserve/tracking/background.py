"""A sink behind a thread, so that a slow or hanging one costs the run neither time nor its life.

::

    run ── log() ──▶ queue (bounded) ──▶ thread: open → log … → close ──▶ network, files

``log`` and ``log_answers`` never wait. A sink that has failed, or that lets the queue fill up, raises in the next call
of one of them or of ``close``; the tracker then drops it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlserve.errors import DeadlineExceededError
from rlserve.tracking.answers import Kind, MakeAnswers
from rlserve.tracking.base import Sink

MAX_NUM_WAITING = 1000
"""Calls of ``log`` that may wait for the sink."""
CLOSE_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class _Entry:
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class _Answers:
    step: int
    kind: Kind
    make: MakeAnswers


@dataclass(frozen=True)
class _Alert:
    title: str
    text: str


@dataclass(frozen=True)
class _Close:
    exit_code: int


class BackgroundSink(Sink):
    """Opens and feeds another sink in a thread of its own.

    Args:
        name: as a warning calls it.
        open_sink: makes the sink; called in the thread, since connecting may take long.
        close_timeout_s: deadline of writing out what is left when the run ends.
        max_num_waiting: calls of ``log`` that may wait for the sink.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], Sink],
        *,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        max_num_waiting: int = MAX_NUM_WAITING,
    ) -> None:
        self.name = name
        self._open_sink = open_sink
        self._close_timeout_s = close_timeout_s
        self._max_num_waiting = max_num_waiting
        self._queue: queue.SimpleQueue[_Entry | _Answers | _Alert | _Close] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics to the thread.

        Raises:
            DeadlineExceededError: the sink is ``max_num_waiting`` calls behind.
            Exception: whatever the sink failed with.
        """
        self._put(_Entry(step, metrics))

    def log_answers(self, step: int, kind: Kind, make: MakeAnswers) -> None:
        """Hand the answers to the thread; ``make`` is called there. Raises as :meth:`log` does."""
        self._put(_Answers(step, kind, make))

    def alert(self, title: str, text: str) -> None:
        """Hand an alert to the thread. Raises as :meth:`log` does."""
        self._put(_Alert(title, text))

    def close(self, exit_code: int) -> None:
        """Wait until everything is written.

        Raises:
            DeadlineExceededError: it took longer than ``close_timeout_s``.
            Exception: whatever the sink failed with.
        """
        self._queue.put(_Close(exit_code))
        self._thread.join(self._close_timeout_s)
        self._raise_failure()
        if self._thread.is_alive():
            raise DeadlineExceededError(f"{self.name} was not closed after {self._close_timeout_s:g} s")

    def _put(self, item: _Entry | _Answers | _Alert) -> None:
        self._raise_failure()
        if self._queue.qsize() >= self._max_num_waiting:
            raise DeadlineExceededError(f"{self.name} does not keep up: {self._max_num_waiting} entries wait for it")
        self._queue.put(item)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            sink = self._open_sink()
            while not isinstance(item := self._queue.get(), _Close):
                if isinstance(item, _Entry):
                    sink.log(item.step, item.metrics)
                elif isinstance(item, _Alert):
                    sink.alert(item.title, item.text)
                else:
                    sink.log_answers(item.step, item.kind, item.make)
            sink.close(item.exit_code)
        except Exception as error:  # handed to the thread that calls log and close
            self._failure = error
