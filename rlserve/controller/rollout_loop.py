"""Prompts in, scored groups out: the two loops on the rollout side.

::

    PromptSource ──admit (while the ledger has room)──► router ──► replicas
                                                                      │ on_output
    buffer ◄── reward ◄── scoring queue ◄─────────────────────────────┘

``admit`` is unblocked by a finished training step or a dropped group; ``score`` by a finished output. A group
whose request the engine refused, or whose reward failed, is dropped with its reason and counted, and the next
prompt takes its place; more than a few of either stop the run, which would otherwise eat up its prompts for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from rlserve.controller.counters import Counters, RunClock
from rlserve.controller.replicas import Replicas
from rlserve.controller.signal import Signal
from rlserve.engine.request import RequestOutput
from rlserve.errors import RewardError, UserError
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.data import PromptSource
from rlserve.rollout.groups import PromptGroup, ScoredGroup
from rlserve.rollout.ledger import GroupState, Ledger
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.samples import reward_sample
from rlserve.rollout.router import Router
from rlserve.rollout.scoring import Scorer

logger = logging.getLogger(__name__)

ENGINE_ERROR = "engine_error"
REWARD_ERROR = "reward_error"


class RolloutLoop:
    """Admits prompt groups and scores what comes back."""

    def __init__(
        self,
        *,
        source: PromptSource,
        ledger: Ledger,
        router: Router,
        buffer: SampleBuffer,
        scorer: Scorer,
        counters: Counters,
        clock: RunClock,
        changed: Signal,
        max_reward_failures: int,
        max_refusals: int,
        decode: Callable[[tuple[int, ...]], str],
        current_version: Callable[[], int],
    ) -> None:
        self._source = source
        self._ledger = ledger
        self._router = router
        self._buffer = buffer
        self._scorer = scorer
        self._counters = counters
        self._clock = clock
        self._changed = changed
        self._max_reward_failures = max_reward_failures
        self._max_refusals = max_refusals
        self._decode = decode
        self._current_version = current_version
        self._finished: asyncio.Queue[tuple[PromptGroup, RequestOutput]] = asyncio.Queue()

    def readmit(self, replicas: Replicas) -> None:
        """After a resume: give the groups that the ledger restored as pending to the replicas again."""
        for record in self._ledger.live():
            group = self._source.get(record.id, position=record.position)
            self._router.submit(group, admitted_version=record.admitted_version, attempt=record.attempt)
        replicas.dispatch()

    async def admit(self, replicas: Replicas, wanted: Callable[[], int]) -> None:
        """Admit groups while there is room and fewer than ``wanted()`` were admitted."""
        while True:
            await self._changed.wait_for(lambda: self._ledger.room > 0 and self._ledger.num_admitted < wanted())
            while self._ledger.room > 0 and self._ledger.num_admitted < wanted():
                self._admit_next()
            replicas.dispatch()

    def _admit_next(self) -> None:
        group, now = self._source.next(), self._clock.now()
        record = self._ledger.admit(
            group.id, position=group.position, current_version=self._current_version(), time_s=now
        )
        if group.drop_reason is not None:
            self._ledger.drop(group.id, reason=group.drop_reason, time_s=now)
        else:
            self._router.submit(group, admitted_version=record.admitted_version)

    def on_started(self, group_ids: Iterable[str]) -> None:
        """Replicas were given these groups."""
        for group_id in group_ids:
            self._ledger.start(group_id, time_s=self._clock.now())

    def on_returned(self, group_ids: Iterable[str]) -> None:
        """A replica left, and these groups wait again."""
        for group_id in group_ids:
            self._ledger.requeue(group_id, time_s=self._clock.now())

    def on_output(self, slot_id: str, output: RequestOutput) -> None:
        """A replica finished, or refused, a group; answers that come too late are passed over."""
        group = self._router.finished(slot_id, output)
        if group is not None:
            self._finished.put_nowait((group, output))

    async def score(self) -> None:
        """Score finished groups in the order they come and put them into the buffer."""
        while True:
            group, output = await self._finished.get()
            if output.error is not None:
                self._drop(group, ENGINE_ERROR)
                self._note_refusal(group, output.error)
                continue
            try:
                rewards = await self._scorer.score(self._reward_samples(group, output))
            except RewardError as error:
                self._drop(group, REWARD_ERROR)
                self._note_reward_failure(error)
                continue
            record, now = self._ledger.get(group.id), self._clock.now()
            self._ledger.score(group.id, time_s=now)
            self._buffer.put(
                ScoredGroup(
                    group=group,
                    output=output,
                    rewards=tuple(rewards),
                    admitted_version=record.admitted_version,
                    attempt=record.attempt,
                ),
                time_s=now,
            )
            self._changed.notify()

    @property
    def num_scoring(self) -> int:
        """Groups that were generated and wait for their reward."""
        return self._ledger.count(GroupState.RUNNING) - self._router.num_running

    def _reward_samples(self, group: PromptGroup, output: RequestOutput) -> list[RewardSample]:
        return [
            reward_sample(group, sample, id=f"{group.id}/{sample.index}", response=self._decode(sample.token_ids))
            for sample in output.samples
        ]

    def _drop(self, group: PromptGroup, reason: str) -> None:
        self._ledger.drop(group.id, reason=reason, time_s=self._clock.now())
        self._changed.notify()

    def _note_refusal(self, group: PromptGroup, error: str) -> None:
        num_refusals = self._ledger.num_dropped[ENGINE_ERROR]
        if num_refusals > self._max_refusals:
            raise UserError(
                f"the engine refused {num_refusals} prompt groups, more than rollout.max_refusals="
                f"{self._max_refusals}; the last, {group.id}: {error}"
            )
        logger.warning(
            "prompt %s was refused by the engine: %s (%d of %d)", group.id, error, num_refusals, self._max_refusals
        )

    def _note_reward_failure(self, error: RewardError) -> None:
        self._counters.reward_failures += 1
        if self._counters.reward_failures > self._max_reward_failures:
            raise RewardError(
                f"{error}\nthe reward failed for {self._counters.reward_failures} prompt groups, "
                f"more than reward.max_failures={self._max_reward_failures}"
            )
        logger.warning("%s (%d of %d)", error, self._counters.reward_failures, self._max_reward_failures)
