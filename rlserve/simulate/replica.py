"""One replica: samples that advance together, step by step, until they end.

::

    step k             prompts computed in it                      step k + 1
    │◄── decoding ──►│◄── prefill of what has come since k - 1 ──►│◄── decoding, of the newcomers too ──►│

What comes to a replica begins at the next boundary between two steps, as in the engine; the step that computes its
prompt, once a group, gives each sample its first token. Between two changes of its batch, the steps of a replica follow
from the cost of a step alone, so what happens in it is a beginning or an end of a sample, or a cache that is full, and
nothing for each step.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count

from rlserve.simulate.clock import Clock
from rlserve.simulate.costs.base import Costs
from rlserve.simulate.decode_curve import DecodeCurve
from rlserve.simulate.work import Group, Sample

_ROUNDING = 1e-6
"""Of a step."""
_RESERVED_SHARE = 8
"""So many-th part of the cache is left at most, when a prompt begins, for the next blocks of what runs."""


class Replica:
    """Runs the samples of the groups that it is given. All times are seconds of the clock."""

    def __init__(
        self,
        clock: Clock,
        *,
        gang_id: str,
        type_name: str,
        costs: Costs,
        curve: DecodeCurve,
        max_num_sequences: int,
        version: int,
        on_done: Callable[[Replica, Group], None],
    ) -> None:
        """``on_done`` is told of each group whose last sample has ended, which is in the replica no more."""
        self.gang_id = gang_id
        self.type_name = type_name
        self.version = version
        self.since_s = clock.now_s
        self.num_generated = 0.0
        self.busy_s = 0.0
        self.running_s = 0.0
        """Integral of the samples that run over ``busy_s``."""
        self._clock = clock
        self._costs = costs
        self._curve = curve
        self._max_num_sequences = max_num_sequences
        self._on_done = on_done
        self._cache_size = costs.num_kv_tokens(type_name)
        self._block_size = costs.block_size
        self._running: list[tuple[float, int, Sample]] = []
        """A heap by the step that they end at."""
        self._waiting: deque[Sample] = deque()
        self._order = count()
        self._num_read = 0.0
        """Tokens that a step reads: the prompt once for each sample."""
        self._num_cached = 0.0
        """Tokens that the cache holds: the prompt once for each group."""
        self._at_step = 0.0
        self._upto_s = clock.now_s
        """Time that ``_at_step`` is of."""
        self._held_up_until_s = clock.now_s
        self._num_steps_ahead = 0.0
        """Until the next change."""
        self._prefill_step_s: float | None = None
        """Time of the step under way, where it computes prompts."""
        self._change = 0
        """Number of the next change: any other is out of date."""

    @property
    def num_running(self) -> int:
        """Samples in the cache."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Samples that have no place in it."""
        return len(self._waiting)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the cache that is full."""
        return min(1.0, self._num_used / self._cache_size)

    def add(self, group: Group) -> None:
        """Take a group over, with the tokens that its samples have."""
        self.advance()
        self._waiting.extend(group.unfinished)
        self._plan()

    def pause(self, pause_s: float) -> None:
        """Stand still."""
        self.advance()
        self._held_up_until_s = max(self._held_up_until_s, self._clock.now_s) + pause_s
        self._plan()

    def leave(self, *, lost: bool = False) -> None:
        """Stop for good: samples keep the tokens that they have, and those of the step under way, which is computed;
        unless the replica is lost."""
        self.advance()
        self._change += 1
        done = list[Group]()
        if self._running and not lost:
            left = math.ceil(self._at_step - _ROUNDING) - self._at_step
            self._step(max(left, 0.0), 0.0)
            done = self._end_samples()
        for _, _, sample in self._running:
            self._take_out(sample)
        self._running.clear()
        self._waiting.clear()
        for group in done:
            self._on_done(self, group)

    def advance(self) -> None:
        """Bring everything up to now."""
        now_s = self._clock.now_s
        elapsed_s = now_s - max(self._upto_s, self._held_up_until_s)
        if elapsed_s > 0 and self._running:
            if self._prefill_step_s is not None:
                steps = min(self._num_steps_ahead, elapsed_s / self._prefill_step_s)
            else:
                steps = self._curve.num_steps(len(self._running), self._num_read, elapsed_s, self._num_steps_ahead)
            self._step(steps, elapsed_s)
        self._upto_s = now_s

    def _step(self, num_steps: float, work_s: float) -> None:
        num_tokens = num_steps * len(self._running)
        self._at_step += num_steps
        self._num_steps_ahead -= num_steps
        self._num_read += num_tokens
        self._num_cached += num_tokens
        self.num_generated += num_tokens
        self.busy_s += work_s
        self.running_s += work_s * len(self._running)

    def _plan(self) -> None:
        """Find out what comes next: the end of a step that computes prompts, the first end of a sample, a boundary at
        which what waits may begin, or a full cache."""
        self._change += 1
        delay_s = max(0.0, self._held_up_until_s - self._clock.now_s)
        if not self._running:
            self._num_steps_ahead = 0.0
            if not self._waiting:
                return
        elif self._prefill_step_s is not None:
            self._num_steps_ahead = math.floor(self._at_step + _ROUNDING) + 1 - self._at_step
            delay_s += self._num_steps_ahead * self._prefill_step_s
        else:
            self._num_steps_ahead = self._steps_ahead()
            delay_s += self._curve.time_s(len(self._running), self._num_read, self._num_steps_ahead)
        self._clock.after(delay_s, partial(self._arrive, self._change))

    def _steps_ahead(self) -> float:
        num_running, at = len(self._running), self._at_step
        steps = self._running[0][0] - at
        boundary = math.floor(at + _ROUNDING) + 1 - at
        if self._waiting and len(self._running) < self._max_num_sequences:
            steps = min(steps, boundary)
        if num_running > 1:
            room = math.floor(self._num_free / num_running + at + _ROUNDING) - at
            steps = min(steps, max(room, boundary))
        return steps

    def _arrive(self, change: int) -> None:
        """A boundary between two steps."""
        if change != self._change:
            return
        now_s = self._clock.now_s
        self._step(self._num_steps_ahead, max(0.0, now_s - max(self._upto_s, self._held_up_until_s)))
        self._upto_s, self._prefill_step_s = now_s, None
        self._at_step = float(round(self._at_step))
        done = self._end_samples()
        while len(self._running) > 1 and self._num_free < len(self._running) - _ROUNDING:
            self._preempt()
        self._fill()
        self._plan()
        for group in done:
            self._on_done(self, group)

    def _end_samples(self) -> list[Group]:
        """Let samples go that have all their tokens; returns the groups that have none left."""
        done = list[Group]()
        while self._running and self._running[0][0] <= self._at_step + _ROUNDING:
            _, _, sample = heapq.heappop(self._running)
            self._take_out(sample)
            group = sample.group
            group.unfinished.remove(sample)
            if not group.unfinished:
                done.append(group)
        return done

    def _fill(self) -> None:
        """Start what waits, as far as there is room."""
        num_before, num_read = len(self._running), round(self._num_read)
        num_tokens = 0
        while self._waiting and len(self._running) < self._max_num_sequences:
            sample = self._waiting[0]
            group = sample.group
            own = int(sample.num_done)
            shared = 0 if group.num_running else group.work.num_prompt_tokens
            if self._running and not self._has_room(own + shared, group):
                break
            self._waiting.popleft()
            num_tokens += own + shared
            group.num_running += 1
            if group.oldest_version < 0:
                group.oldest_version = self.version
            sample.started_at = self._at_step
            heapq.heappush(self._running, (self._at_step + sample.length - own, next(self._order), sample))
            self._num_read += own + group.work.num_prompt_tokens
            self._num_cached += own + shared
        if num_tokens:
            self._prefill_step_s = self._costs.prefill_step_s(self.type_name, num_before, num_read, num_tokens)

    def _has_room(self, num_tokens: int, group: Group) -> bool:
        """Whether so many tokens may begin beside what runs: samples of a group that runs go on from its prompt."""
        if not num_tokens:
            return True
        num_blocks = self._cache_size // (_RESERVED_SHARE * self._block_size)
        reserved = self._block_size * min(len(self._running) + len(group.unfinished) - 1, num_blocks)
        return self._num_free - num_tokens >= reserved

    @property
    def _num_used(self) -> float:
        """With the part of its last block that a sample does not fill."""
        return self._num_cached + 0.5 * (self._block_size - 1) * len(self._running)

    @property
    def _num_free(self) -> float:
        return self._cache_size - self._num_used

    def _take_out(self, sample: Sample) -> None:
        """Free what a running sample holds; it keeps its whole tokens."""
        group, made = sample.group, self._at_step - sample.started_at
        num_tokens = int(sample.num_done) + made
        self._num_read -= num_tokens + group.work.num_prompt_tokens
        group.num_running -= 1
        self._num_cached -= num_tokens + (0 if group.num_running else group.work.num_prompt_tokens)
        sample.num_done = float(min(sample.length, int(num_tokens + _ROUNDING)))

    def _preempt(self) -> None:
        """The cache is full: the last in order gives its place up, and waits as the first."""
        victim = max(self._running, key=lambda entry: (entry[2].group.position, entry[1]))
        self._running.remove(victim)
        heapq.heapify(self._running)
        self._take_out(victim[2])
        self._waiting.appendleft(victim[2])
