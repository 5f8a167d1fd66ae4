"""One replica: step by step, prompts in chunks, then a token for each sample.

::

    take ──► waiting ──► prefill, as the budget of a step allows ──► running ──► ended
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from rlserve.engine.config import EngineConfig
from rlserve.roofline.accelerators import SlotType
from rlserve.roofline.costs import Costs
from rlserve.serving.replicas.state import ReplicaState
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.server.load import ServedRequest


@dataclass(kw_only=True)
class Served:
    """A request and what became of it."""

    request: ServedRequest
    first_token_s: float | None = None
    end_s: float | None = None

    @property
    def time_to_first_token_s(self) -> float | None:
        """From its arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.request.arrival_s

    @property
    def time_per_output_token_s(self) -> float | None:
        """After the first; None before the end."""
        if self.first_token_s is None or self.end_s is None:
            return None
        return (self.end_s - self.first_token_s) / max(self.request.num_answer_tokens - 1, 1)


@dataclass(kw_only=True)
class ReplicaTotals:
    """Since the replica was made."""

    busy_s: float = 0.0
    num_first_tokens: int = 0
    first_tokens_s: float = 0.0
    """Sum of the times to them."""
    num_gaps: int = 0
    """Between two tokens of an answer."""
    gaps_s: float = 0.0


@dataclass(kw_only=True)
class _Prefill:
    served: Served
    num_left: int


@dataclass(kw_only=True)
class SimulatedReplica:
    """Its place: whether there is a process in it says ``state``."""

    name: str
    clock: Clock
    costs: Costs
    slot_type: SlotType
    engine: EngineConfig
    state: ReplicaState = ReplicaState.IDLE
    started_s: float = 0.0
    totals: ReplicaTotals = field(default_factory=ReplicaTotals)
    _waiting: deque[_Prefill] = field(default_factory=deque)
    _running: list[tuple[int, int, Served]] = field(default_factory=list)
    """By the step that draws the last token."""
    _begun: list[Served] = field(default_factory=list)
    """Those that get their first token with the step under way."""
    _num_steps: int = 0
    _num_taken: int = 0
    _num_kv_tokens: int = 0
    _is_stepping: bool = False

    @property
    def num_samples(self) -> int:
        """That it has."""
        return len(self._waiting) + len(self._begun) + len(self._running)

    @property
    def num_waiting(self) -> int:
        """Those without a token."""
        return len(self._waiting)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the cache that its samples hold."""
        return min(self._num_kv_tokens / self._most_kv_tokens, 1.0)

    @property
    def _most_kv_tokens(self) -> int:
        if self.engine.num_blocks is not None:
            return self.engine.num_blocks * self.engine.block_size
        return self.costs.num_kv_tokens(self.slot_type, memory_fraction=self.engine.gpu_memory_fraction)

    def take(self, served: Served) -> None:
        """Give it a request."""
        self._waiting.append(_Prefill(served=served, num_left=served.request.num_prompt_tokens))
        if not self._is_stepping:
            self._is_stepping = True
            self.clock.start(self._steps())

    def _steps(self) -> Process:
        while self.num_samples:
            num_prefill = self._plan()
            step_s = self.costs.engine_step_s(
                self.slot_type,
                num_samples=len(self._running),
                num_kv_tokens=self._num_kv_tokens,
                num_prefill_tokens=num_prefill,
            )
            yield step_s
            self._finish_step(step_s)
        self._is_stepping = False

    def _plan(self) -> int:
        """Choose what the next step computes; the tokens of prompts in it."""
        budget = self.engine.max_num_batched_tokens - len(self._running)
        num_prefill = 0
        while self._waiting and budget > 0 and len(self._running) + len(self._begun) < self.engine.max_num_sequences:
            first = self._waiting[0]
            is_new = first.num_left == first.served.request.num_prompt_tokens
            needed = first.served.request.num_prompt_tokens + first.served.request.num_answer_tokens
            # All that it will have is kept free for it: a preemption is not simulated.
            if is_new and (self._running or self._begun) and self._num_kv_tokens + needed > self._most_kv_tokens:
                break
            chunk = min(first.num_left, budget)
            first.num_left -= chunk
            budget, num_prefill = budget - chunk, num_prefill + chunk
            self._num_kv_tokens += chunk
            if first.num_left:
                break
            self._waiting.popleft()
            self._begun.append(first.served)
        return num_prefill

    def _finish_step(self, step_s: float) -> None:
        self._num_steps += 1
        totals, now_s = self.totals, self.clock.now_s
        totals.busy_s += step_s
        totals.num_gaps += len(self._running)
        totals.gaps_s += step_s * len(self._running)
        self._num_kv_tokens += len(self._running)
        while self._running and self._running[0][0] <= self._num_steps:
            self._end(heapq.heappop(self._running)[2])
        begun, self._begun = self._begun, []
        for served in begun:
            served.first_token_s = now_s
            totals.num_first_tokens += 1
            totals.first_tokens_s += now_s - served.request.arrival_s
            if served.request.num_answer_tokens == 1:
                self._end(served)
                continue
            self._num_taken += 1
            last = self._num_steps + served.request.num_answer_tokens - 1
            heapq.heappush(self._running, (last, self._num_taken, served))

    def _end(self, served: Served) -> None:
        served.end_s = self.clock.now_s
        self._num_kv_tokens -= served.request.num_prompt_tokens + served.request.num_answer_tokens - 1
