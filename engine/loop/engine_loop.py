"""The loop around ``Engine.step``, in a thread of its own.

::

    submit, abort (queued)   ┐
    run, stop (waited for)   ├──► commands ──►┐
    read (deltas are wanted) ┘                │  between two steps
                               engine.step() ◄┘
                                     │
                                     ▼
    read ◄──────────── answers and deltas, by subscription

Only this thread touches the engine. Everything else reaches it as a command that runs between two steps, so new
weights are swapped in at a step boundary by construction. The thread sleeps while there is neither work nor a command.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rlserve.engine.core.engine import Engine
from rlserve.engine.loop.commands import CommandQueue
from rlserve.engine.loop.piece_pace import PiecePace
from rlserve.engine.loop.step_pace import StepPace
from rlserve.engine.loop.subscription import AnswerSubscription, DeltaSubscription, ProgressSubscription, Subscription
from rlserve.engine.requests.request import Request, RequestOutput
from rlserve.engine.requests.validation import output_id
from rlserve.engine.stats.engine_stats import EngineStats
from rlserve.engine.stats.step_profile import StepProfile

logger = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S", bound=Subscription[Any])


@dataclass(frozen=True, kw_only=True)
class LoopStats:
    """Numbers of the loop as of its last boundary between two steps."""

    engine: EngineStats
    num_steps: int
    """Of this loop. A loop whose engine has work and whose steps do not count up is stuck, or in a long step."""
    busy_s: float
    """Seconds that steps took; the rest of the time the engine waited for work, or ran commands."""
    recompute_s: float
    """Of that, for keys and values that had been there before: of each step, the share of such tokens."""
    running_s: float
    """Integral of the samples with KV blocks over ``busy_s``: divided by it, the mean batch of a step."""
    first_token_s: float | None
    """When this loop made its first token, on its clock; None before."""


class EngineLoop:
    """Serves requests with one engine until it is stopped or the engine fails. All methods may be called from any
    thread, but not from a function that :meth:`run` runs.

    The engine outlives the loop, and another loop can take it over.

    Args:
        engine: touched by nobody else from now on.
        clock: seconds.
        pace: holds the outputs of each step back until it may end. Commands run meanwhile.
    """

    def __init__(
        self, engine: Engine, *, clock: Callable[[], float] = time.perf_counter, pace: StepPace | None = None
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._pace = pace
        self._commands = CommandQueue()
        self._subscriptions: weakref.WeakSet[Subscription[Any]] = weakref.WeakSet()
        self._followers: dict[str, Subscription[Any]] = {}
        """By the id of each request in the engine. Of the engine's thread; so is the next."""
        self._readers: set[DeltaSubscription] = set()
        """That wait for news."""
        self._held: list[RequestOutput] = []
        """Outputs of a step that is computed and has not ended."""
        self._profile: StepProfile | None = None
        """That sees the steps of now."""
        self._is_running = True
        self._is_computing = False
        self._num_steps = 0
        self._busy_s = 0.0
        self._recompute_s = 0.0
        self._running_s = 0.0
        self._num_tokens_before = engine.stats().num_generated_tokens
        self._first_token_s: float | None = None
        self._goes_on_since_s: float | None = None
        """When the last step ended, if the next one was to follow at once."""
        self._longest_gap_s = 0.0
        self._stats = self._read_stats()
        gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._run, args=(gpu,), name="engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> LoopStats:
        """The numbers of now. Waits for nothing."""
        return self._stats

    def take_longest_gap_s(self) -> float:
        """The longest time from the end of a step to the end of the next, of those that ended since the last call,
        without the time in which there was no work; 0 where none ended."""
        with self._commands.lock:
            longest_s, self._longest_gap_s = self._longest_gap_s, 0.0
        return longest_s

    @property
    def is_computing(self) -> bool:
        """Whether the engine is in the middle of a step. Waits for nothing."""
        return self._is_computing

    def subscribe_answers(self) -> AnswerSubscription:
        """A reader of whole answers."""
        return self._subscribed(AnswerSubscription(self._commands))

    def subscribe_deltas(self, max_pieces_per_s: float = math.inf) -> DeltaSubscription:
        """A reader of new tokens, for streams.

        Args:
            max_pieces_per_s: that it reads, of all requests together, where they are more than an eighteenth of it:
                several tokens are told at once then; first ones and ends never wait.
        """
        return self._subscribed(DeltaSubscription(self._commands, self._readers, PiecePace(max_pieces_per_s)))

    def subscribe_progress(self, interval_s: float) -> ProgressSubscription:
        """A reader of whole answers, which has their tokens so far at intervals."""
        return self._subscribed(ProgressSubscription(self._commands, self._readers, interval_s))

    def submit(self, requests: Sequence[Request], subscription: Subscription[Any]) -> None:
        """Queue requests, which the engine has from its next step on. Does not wait for that: the step under way may be
        a long one, or compile.

        Args:
            requests: in order. Every one ends in ``subscription``, exactly once, unless :meth:`stop` breaks it off; one
                that cannot be served ends with an error.
            subscription: of this loop; who hears of these requests.

        Raises:
            WorkerFailedError: the engine failed, or the loop is stopping.
        """
        self._commands.put(lambda: self._add(requests, subscription))

    def abort(self, request_ids: Iterable[str]) -> None:
        """End requests at the next boundary; they come out of their subscriptions with the tokens so far. Ids that are
        not in the engine are passed over: they ended by themselves.

        Raises:
            WorkerFailedError: the engine failed, or the loop is stopping.
        """
        aborted = list(request_ids)
        self._commands.put(lambda: self._route(self._engine.abort(aborted)))

    def run(self, function: Callable[[Engine], T]) -> T:
        """Run a function between two steps, and wait for what it returns or raises. It must not add or abort requests.

        Raises:
            WorkerFailedError: the engine failed, or the loop is stopping.
        """
        return self._commands.call(lambda: function(self._engine))

    def begin_profile(self, profile: StepProfile) -> None:
        """Have the next steps profiled, until the profile ends by itself, or :meth:`end_profile`. One at a time.

        Raises:
            WorkerFailedError: the engine failed, or the loop is stopping.
        """

        def begin(_: Engine) -> None:
            profile.start()
            self._profile = profile

        self.run(begin)

    def end_profile(self) -> None:
        """End the profile of now, if there is one.

        Raises:
            WorkerFailedError: the engine failed, or the loop is stopping.
        """

        def end(_: Engine) -> None:
            if self._profile is not None:
                self._profile.stop()
                self._profile = None

        self.run(end)

    def stop(self) -> tuple[RequestOutput, ...]:
        """Break off all requests and end the loop, after the commands before. The engine is the caller's again.

        Returns:
            The requests that were broken off, with the tokens they have, to be resumed elsewhere. What ended before is
            read from the subscriptions, and the last tokens of deltas too.

        Raises:
            WorkerFailedError: the engine failed, or the loop is stopping already.
        """
        partials = self._commands.call(self._finish, is_last=True)
        self._thread.join()
        return partials

    # -- the engine's thread ---------------------------------------------------------------------------------

    def _run(self, gpu: int | None) -> None:
        failure: BaseException | None = None
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)  # each thread has a current GPU of its own
            while self._is_running:
                self._commands.wait(lambda: self._engine.can_step)
                self._commands.run_all()
                self._serve_readers()
                if self._is_running and self._engine.can_step:
                    self._step()
                else:
                    self._stats = self._read_stats()
        except BaseException as error:
            logger.exception("the engine stopped")
            failure = error
        self._commands.end(failure)
        for subscription in list(self._subscriptions):
            subscription._wake()

    def _step(self) -> None:
        start, num_before = self._clock(), self._stats.engine.num_running
        self._is_computing = True
        try:
            with nullcontext() if self._profile is None else self._profile.step():
                self._held = self._engine.step()
        finally:
            self._is_computing = False
        # Some begin with the step, others end with it: the larger number is nearer to its batch.
        engine = self._engine.stats()
        if self._pace is not None:
            self._hold(self._pace, start)
        now = self._clock()
        self._note_end(now, engine, since_s=start if self._goes_on_since_s is None else self._goes_on_since_s)
        step_s = now - start
        self._busy_s += step_s
        self._recompute_s += step_s * self._engine.last_work.recomputed_share
        self._num_steps += 1
        self._running_s += step_s * max(num_before, engine.num_running)
        self._stats = self._read_stats()  # before its outputs: who reads them finds the step counted
        self._route_held()
        self._serve_readers()

    def _note_end(self, now_s: float, engine: EngineStats, *, since_s: float) -> None:
        with self._commands.lock:
            self._longest_gap_s = max(self._longest_gap_s, now_s - since_s)
        self._goes_on_since_s = now_s if self._engine.can_step else None
        if self._first_token_s is None and engine.num_generated_tokens > self._num_tokens_before:
            self._first_token_s = now_s

    def _hold(self, pace: StepPace, start_s: float) -> None:
        pace.computed(start_s, self._engine.last_work)
        while self._is_running and (left_s := pace.left_s()) > 0:
            self._commands.wait(lambda: False, left_s)
            self._commands.run_all()
        pace.ended(goes_on=self._is_running and self._engine.can_step)

    def _add(self, requests: Sequence[Request], subscription: Subscription[Any]) -> None:
        for request in requests:
            request_id = output_id(request)
            if request_id in self._followers:
                error = f"a request with id {request_id!r} is in the engine already"
                subscription._end([RequestOutput(request_id=request_id, samples=(), error=error)])
                continue
            self._followers[request_id] = subscription
            if self._engine.add(request):
                subscription._follow(request)

    def _route_held(self) -> None:
        held, self._held = self._held, []
        self._route(held)

    def _route(self, outputs: Sequence[RequestOutput]) -> None:
        """Give each subscription the ends of its requests, all at once."""
        by_subscription: dict[Subscription[Any], list[RequestOutput]] = {}
        for output in outputs:
            by_subscription.setdefault(self._followers.pop(output.request_id), []).append(output)
        for subscription, ended in by_subscription.items():
            subscription._end(ended)

    def _serve_readers(self) -> None:
        for reader in list(self._readers):
            if reader._serve(self._engine):
                self._readers.discard(reader)

    def _finish(self) -> tuple[RequestOutput, ...]:
        try:
            self._route_held()
            partials = tuple(self._engine.abort(sorted(self._followers)))
            for partial in partials:
                del self._followers[partial.request_id]
            while self._engine.has_work:  # outputs that the next step would have handed out
                self._route(self._engine.step())
            by_id = {partial.request_id: partial for partial in partials}
            for subscription in list(self._subscriptions):
                subscription._close(by_id)
        finally:
            self._is_running = False
            if self._profile is not None:
                self._profile.stop()
        return partials

    def _subscribed(self, subscription: S) -> S:
        with self._commands.lock:
            self._subscriptions.add(subscription)
        return subscription

    def _read_stats(self) -> LoopStats:
        return self._loop_stats(self._engine.stats())

    def _loop_stats(self, engine: EngineStats) -> LoopStats:
        return LoopStats(
            engine=engine,
            num_steps=self._num_steps,
            busy_s=self._busy_s,
            recompute_s=self._recompute_s,
            running_s=self._running_s,
            first_token_s=self._first_token_s,
        )
