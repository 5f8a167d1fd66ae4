"""The pace of an accelerator that is only modelled: the worker sleeps until the model says that it would be done.

::

    real work ──► computed_s ──► sleep ──────────────► end: start + what rlserve.roofline.costs gives
    real work of a slow machine ─────────────────────────────────► late: counted

Steps of an engine follow each other without a gap, so one that ends late lets the next one begin as if it had not:
what this machine loses in one step, it may catch up with in the next. Only what it cannot is counted as late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rlserve.engine.stats.step_work import StepWork
from rlserve.pool.pacing.base import Activity, ActivityTimes, Pace, Pacing, PacingAccount


class RooflinePace(Pace):
    """Paces one worker by sleeping."""

    def __init__(
        self,
        pacing: Pacing,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``clock`` and ``sleep`` are real."""
        self._pacing = pacing
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._account: dict[Activity, ActivityTimes] = {}

    def now_s(self) -> float:
        return self._clock() / self._pacing.dilation

    def real_s(self, modelled_s: float) -> float:
        """What modelled seconds take."""
        return modelled_s * self._pacing.dilation

    def engine_steps(self) -> EngineSteps:
        return EngineSteps(self, self._pacing)

    def account(self) -> PacingAccount:
        with self._lock:
            return dict(self._account)

    def note(self, activity: Activity, times: ActivityTimes) -> None:
        """Add to the account."""
        with self._lock:
            self._account[activity] = self._account.get(activity, ActivityTimes()) + times

    def waking(self) -> AbstractContextManager[None]:
        return self._lasting(Activity.WAKE, self._pacing.costs.wake_s(self._pacing.slot_type))

    def freeing(self) -> AbstractContextManager[None]:
        return self._lasting(Activity.SLEEP, self._pacing.costs.sleep_s(self._pacing.slot_type))

    def receiving(self) -> AbstractContextManager[None]:
        return self._lasting(Activity.RECEIVE, self._pacing.costs.weights_s(self._pacing.slot_type))

    def copying(self) -> AbstractContextManager[None]:
        return self._lasting(Activity.COPY, self._pacing.costs.snapshot_s(self._pacing.slot_type))

    # The others have paces of their own, and whoever waits for all of them waits for the slowest type.

    def stepping(self, *, num_ranks: int, num_tokens: int) -> AbstractContextManager[None]:
        step_s = self._pacing.costs.train_step_s([self._pacing.slot_type] * num_ranks, num_tokens)
        return self._lasting(Activity.TRAIN_STEP, step_s)

    def resharding(self, *, num_ranks: int, num_before: int) -> AbstractContextManager[None]:
        reshard_s = self._pacing.costs.reshard_s([self._pacing.slot_type] * num_ranks, num_before)
        return self._lasting(Activity.RESHARD, reshard_s)

    @contextmanager
    def _lasting(self, activity: Activity, duration_s: float) -> Iterator[None]:
        start_s = self.now_s()
        yield
        computed_s = self.now_s() - start_s
        if computed_s < duration_s:
            self._sleep(self.real_s(duration_s - computed_s))
        late_s = max(self.now_s() - start_s - duration_s, 0.0)
        self.note(activity, ActivityTimes(number=1, modelled_s=duration_s, computed_s=computed_s, late_s=late_s))


class EngineSteps:
    """Steps of one engine, whose loop reads the pace's clock."""

    def __init__(self, pace: RooflinePace, pacing: Pacing) -> None:
        self._pace = pace
        self._pacing = pacing
        self._duration_s = self._computed_s = 0.0
        self._end_s = 0.0
        self._goes_on = False

    def computed(self, start_s: float, work: StepWork) -> None:
        self._duration_s = self._pacing.costs.engine_step_s(
            self._pacing.slot_type,
            num_samples=work.num_samples,
            num_kv_tokens=work.num_kv_tokens,
            num_prefill_tokens=work.num_prefill_tokens,
        )
        self._computed_s = self._pace.now_s() - start_s
        behind_s = start_s - self._end_s if self._goes_on else 0.0
        if behind_s > self._duration_s:  # more than this step could catch up with
            self._pace.note(Activity.ENGINE_STEP, ActivityTimes(late_s=behind_s))
            behind_s = 0.0
        self._end_s = start_s - behind_s + self._duration_s

    def left_s(self) -> float:
        return self._pace.real_s(self._end_s - self._pace.now_s())

    def ended(self, *, goes_on: bool) -> None:
        self._goes_on = goes_on
        over_s = self._pace.now_s() - self._end_s
        times = ActivityTimes(
            number=1,
            modelled_s=self._duration_s + min(over_s, 0.0),  # one that is broken off is shorter
            computed_s=self._computed_s,
            late_s=0.0 if goes_on else max(over_s, 0.0),
        )
        self._pace.note(Activity.ENGINE_STEP, times)
