"""Three ways to follow requests: whole answers, what is new of each, or whole answers with what is new now and then.

Neither holds the engine up. Answers wait until they are read. Deltas are not stored: what a reader has not seen stands
in the engine, and is read from there, between two steps, once the reader asks. One that asks late gets more tokens at
once, and never more than the answers of its own requests wait for it.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from rlserve.engine.core.engine import Engine
from rlserve.engine.loop.commands import CommandQueue
from rlserve.engine.loop.piece_pace import PiecePace
from rlserve.engine.requests.delta import RequestDelta, SampleDelta, rest_of
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput

Item = TypeVar("Item")


class Subscription(ABC, Generic[Item]):
    """One reader's end, made by an ``EngineLoop``. Other threads read; what begins with an underscore is called by the
    loop in the engine's thread."""

    def __init__(self, commands: CommandQueue) -> None:
        self._commands = commands
        self._changed = threading.Condition(commands.lock)
        self._unread: list[Item] = []

    @property
    def is_closed(self) -> bool:
        """Whether the loop has stopped in order and all was read."""
        with self._commands.lock:
            return self._commands.has_ended and not self._unread

    def read(self, timeout_s: float) -> tuple[Item, ...]:
        """What came since the last call; waits up to ``timeout_s`` for the first. Nothing once it is closed.

        Raises:
            WorkerFailedError: the engine failed, and what came before was read.
        """
        with self._commands.lock:
            if not self._unread and not self._commands.has_ended:
                self._wait(timeout_s)
            if not self._unread:
                self._commands.raise_failure()
            unread, self._unread = tuple(self._unread), []
            return unread

    def _wait(self, timeout_s: float) -> None:
        self._changed.wait_for(lambda: self._unread or self._commands.has_ended, timeout_s)

    @abstractmethod
    def _follow(self, request: Request) -> None:
        """The engine took a request."""

    @abstractmethod
    def _end(self, outputs: Sequence[RequestOutput]) -> None:
        """Requests ended, or were refused."""

    def _close(self, partials: Mapping[str, RequestOutput]) -> None:
        """The loop stops and breaks requests off; they may be of other subscriptions."""

    def _hand_out(self, items: Sequence[Item]) -> None:
        with self._commands.lock:
            self._unread += items
            self._changed.notify_all()

    def _wake(self) -> None:
        """The loop has ended."""
        with self._commands.lock:
            self._changed.notify_all()


class AnswerSubscription(Subscription[RequestOutput]):
    """Whole answers. Costs nothing while a request is under way."""

    def _follow(self, request: Request) -> None:
        pass

    def _end(self, outputs: Sequence[RequestOutput]) -> None:
        self._hand_out(outputs)


class DeltaSubscription(Subscription[RequestDelta]):
    """The new tokens of each request since the last read, and the whole answer with its last ones."""

    def __init__(self, commands: CommandQueue, readers: set[DeltaSubscription], pace: PiecePace) -> None:
        """``readers`` belongs to the engine's thread: the subscriptions that it serves at the next boundary."""
        super().__init__(commands)
        self._readers = readers
        self._pace = pace
        self._is_waiting = False
        self._num_seen: dict[str, dict[int, int]] = {}
        """How many tokens of each sample were read, of samples that go on as far as the reader knows."""
        self._ended: list[RequestOutput] = []

    def _wait(self, timeout_s: float) -> None:
        self._is_waiting = True
        if self._commands.is_open:
            self._commands.put(lambda: self._readers.add(self))
        super()._wait(timeout_s)
        self._is_waiting = False

    def _follow(self, request: Request) -> None:
        resumed = {sample.index: len(sample.tokens) for sample in request.resumed}
        self._num_seen[request.id] = dict.fromkeys(range(request.sampling.n), 0) | resumed

    def _end(self, outputs: Sequence[RequestOutput]) -> None:
        self._ended += outputs

    def _close(self, partials: Mapping[str, RequestOutput]) -> None:
        last = self._take_ended()
        for output in (partials[request_id] for request_id in list(self._num_seen) if request_id in partials):
            samples = tuple(filter(_has_news, map(_going_on, self._rest(output))))
            if samples:
                last.append(RequestDelta(request_id=output.request_id, samples=samples))
        self._hand_out(last)

    def _serve(self, engine: Engine) -> bool:
        """Hand out what is new; whether the reader got something, or waits no more."""
        if not self._is_waiting:
            return True
        deltas = self._take_ended()
        for request_id, num_seen in self._under_way(engine):
            if samples := engine.new_tokens(request_id, num_seen):
                deltas.append(RequestDelta(request_id=request_id, samples=samples))
                self._note(num_seen, samples)
        if deltas:
            self._pace.told(sum(len(delta.samples) for delta in deltas))
            self._hand_out(deltas)
        return bool(deltas)

    def _under_way(self, engine: Engine) -> Collection[tuple[str, dict[int, int]]]:
        """Of the requests whose new tokens are told now, how many were read. Who was told of nothing yet never waits,
        and where no step follows nobody does."""
        if self._pace.is_due or not engine.can_step:
            return self._num_seen.items()
        return [(request_id, num_seen) for request_id, num_seen in self._num_seen.items() if not any(num_seen.values())]

    def _take_ended(self) -> list[RequestDelta]:
        ended, self._ended = self._ended, []
        return [
            RequestDelta(request_id=output.request_id, samples=self._rest(output), output=output) for output in ended
        ]

    def _rest(self, output: RequestOutput) -> tuple[SampleDelta, ...]:
        """What was not read of a request that has ended; nothing of one that was refused."""
        num_seen = self._num_seen.pop(output.request_id, {})
        return tuple(rest_of(sample, num_seen[sample.index]) for sample in output.samples if sample.index in num_seen)

    @staticmethod
    def _note(num_seen: dict[int, int], samples: Sequence[SampleDelta]) -> None:
        for sample in samples:
            if sample.finish_reason is None:
                num_seen[sample.index] = sample.start + len(sample.tokens)
            else:
                del num_seen[sample.index]


class ProgressSubscription(DeltaSubscription):
    """The whole answer of each request at its end, and its new tokens now and then before: for a reader that wants to
    go on elsewhere from there if this engine is lost."""

    def __init__(self, commands: CommandQueue, readers: set[DeltaSubscription], interval_s: float) -> None:
        super().__init__(commands, readers, PiecePace(math.inf))
        self._interval_s = interval_s
        self._due_s = time.monotonic() + interval_s

    def _under_way(self, engine: Engine) -> Collection[tuple[str, dict[int, int]]]:
        now_s = time.monotonic()
        if now_s < self._due_s:
            return ()
        self._due_s = now_s + self._interval_s
        return super()._under_way(engine)

    def _take_ended(self) -> list[RequestDelta]:
        """The answers alone, which have all tokens."""
        return [replace(delta, samples=()) for delta in super()._take_ended()]


def _going_on(sample: SampleDelta) -> SampleDelta:
    """A sample that was broken off has not ended: another engine can go on with it."""
    return replace(sample, finish_reason=None) if sample.finish_reason is FinishReason.ABORT else sample


def _has_news(sample: SampleDelta) -> bool:
    return len(sample.tokens) > 0 or sample.finish_reason is not None
