"""What other threads want done between two steps of the engine, and whether it will be done."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from rlserve.errors import WorkerFailedError

T = TypeVar("T")


class CommandQueue:
    """Commands for the engine's thread, in the order in which they came. ``lock`` guards all that crosses threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._commands: deque[Callable[[], None]] = deque()
        self._calls: set[Future[Any]] = set()
        """Those whose callers wait."""
        self._is_stopping = False
        self._has_ended = False
        self._failure: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands are taken."""
        return not self._is_stopping and not self._has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the engine's thread does nothing any more."""
        return self._has_ended

    def put(self, command: Callable[[], None]) -> None:
        """Have a command run after those before it, at the next boundary between steps. If it raises, the engine has
        failed.

        Raises:
            WorkerFailedError: the engine failed, or the loop is stopping.
        """
        with self.lock:
            self.raise_failure()
            if not self.is_open:
                raise WorkerFailedError("the engine loop is stopping: it takes nothing more")
            self._commands.append(command)
            self._changed.notify()

    def call(self, function: Callable[[], T], *, is_last: bool = False) -> T:
        """Have a function run like a command, and wait for what it returns or raises.

        Args:
            is_last: take no commands after this one.

        Raises:
            WorkerFailedError: as for :meth:`put`, or the engine failed before it came to this.
        """
        future: Future[T] = Future()

        def command() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self.lock:
            self.put(command)
            self._calls.add(future)
            self._is_stopping = is_last
        try:
            return future.result()
        finally:
            with self.lock:
                self._calls.discard(future)

    def wait(self, has_work: Callable[[], bool], timeout_s: float | None = None) -> None:
        """In the engine's thread: wait until there is a command, or work, or the time is up."""
        with self.lock:
            self._changed.wait_for(lambda: self._commands or has_work(), timeout_s)

    def run_all(self) -> None:
        """In the engine's thread: run the commands that wait, and those that come meanwhile."""
        while True:
            with self.lock:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command()

    def end(self, failure: BaseException | None) -> None:
        """In the engine's thread: nothing will be done any more, because of ``failure`` or in order."""
        with self.lock:
            self._has_ended, self._failure = True, failure
            for future in self._calls:
                if not future.done():
                    future.set_exception(WorkerFailedError(f"the engine stopped: {failure!r}"))

    def raise_failure(self) -> None:
        """Raise ``WorkerFailedError`` if the engine failed."""
        if self._failure is not None:
            raise WorkerFailedError(f"the engine stopped: {self._failure!r}") from self._failure
