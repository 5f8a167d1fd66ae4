"""Prompts in, scored groups out: the two loops on the rollout side.

::

    PromptSource ──admit (while the ledger has room)──► router ──► replicas
                                                                      │ RequestAnswered
    buffer ◄── reward ◄── scoring queue ◄──(conversations, to their ends)

``admit`` is unblocked by a finished training step or a dropped group; ``score`` by a finished output. With an
environment the samples of an answered group go on turn by turn, each by itself (``rlserve.rollout.conversations``); for
the ledger the group is running until all of them are over. A group whose request the engine refused, whose environment
or reward failed or left it out, or whose rewards are all equal where that is asked for
(``rlserve.rollout.group_filter``), is dropped with its reason and counted, and the next prompt takes its place, towards
the end of a run in advance (``rlserve.rollout.admission``); too large a share of failures stops the run, which would
otherwise eat up its prompts for nothing. As many groups are scored at once as the scorer has workers; the order in
which they end does not matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlserve.controller.answer_stages import AnswerStages
from rlserve.controller.context import Books, RunContext
from rlserve.controller.events import GroupFinished, RequestAnswered, RequestsReturned, RequestsStarted
from rlserve.controller.replicas import Replicas
from rlserve.errors import EnvironmentFailedError, RewardError, RlserveError, UserError
from rlserve.rollout.admission import NOT_NEEDED
from rlserve.rollout.conversations.player import ConversationPlayer
from rlserve.rollout.conversations.scores import with_environment
from rlserve.rollout.failure_share import WINDOW, FailureShare
from rlserve.rollout.group_filter import EQUAL_REWARDS
from rlserve.rollout.groups import GeneratedGroup, PromptGroup
from rlserve.rollout.ledger import GroupRecord
from rlserve.rollout.prompt_source import PromptSource
from rlserve.rollout.requests.base import RequestId, RequestKind
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.rollout.requests.turns import turns_in_training
from rlserve.rollout.rewards.base import Score
from rlserve.rollout.rewards.samples import reward_samples
from rlserve.rollout.scored_groups import scored_group

logger = logging.getLogger(__name__)

ENGINE_ERROR = "engine_error"
ENVIRONMENT_ERROR = "environment_error"
REWARD_ERROR = "reward_error"
REWARD_LEFT_OUT = "reward_left_out"
WORKLOAD_FILTERED = "workload_filtered"


@dataclass(frozen=True, kw_only=True)
class FailureLimits:
    """Largest shares of the last prompt groups that may fail."""

    max_refusal_share: float
    """Refused by the engine."""
    max_reward_failure_share: float
    max_environment_failure_share: float


@dataclass(frozen=True, kw_only=True)
class _Failing:
    """A part of the user's that may fail for a share of the prompt groups."""

    name: str
    """As in the configuration."""
    reason: str
    """Of the groups that it drops."""
    error: type[RlserveError]
    """Of a run that it fails too often in."""
    share: FailureShare


class RolloutLoop:
    """Admits prompt groups and scores what comes back."""

    def __init__(
        self,
        run: RunContext,
        books: Books,
        *,
        source: PromptSource,
        requests: TrainingRequests,
        replicas: Replicas,
        stages: AnswerStages,
        limits: FailureLimits,
    ) -> None:
        self._run = run
        self._ledger = books.ledger
        self._router = books.router
        self._admission = books.admission
        self._buffer = books.buffer
        self._group_filter = books.group_filter
        self._source = source
        self._requests = requests
        self._workload = requests.workload
        self._replicas = replicas
        self._stages = stages
        self._refusals = FailureShare(limits.max_refusal_share)
        self._reward = _Failing(
            name="reward",
            reason=REWARD_ERROR,
            error=RewardError,
            share=FailureShare(limits.max_reward_failure_share),
        )
        self._environment = _Failing(
            name="environment",
            reason=ENVIRONMENT_ERROR,
            error=EnvironmentFailedError,
            share=FailureShare(limits.max_environment_failure_share),
        )
        self._num_left_out_in_a_row = 0
        self._asked: dict[str, PromptGroup] = {}
        """Groups whose answer is not there yet, by id."""
        self._going_on: set[asyncio.Task[None]] = set()
        """Groups that have their answer and do not finish with it: conversations, and waits of a paced run."""
        self._given_up = False
        self._finished: asyncio.Queue[GeneratedGroup] = asyncio.Queue()
        run.events.subscribe(RequestsStarted, self._note_started)
        run.events.subscribe(RequestsReturned, self._note_returned)
        run.events.subscribe(RequestAnswered, self._note_answer)

    def readmit(self) -> None:
        """After a resume: give the groups that the ledger restored as pending to the replicas again."""
        for record in self._ledger.live():
            group = self._source.get(record.id, position=record.position)
            self._submit(group, record)
        self._replicas.dispatch()

    async def admit(self) -> None:
        """Admit groups while there is room."""
        while True:
            await self._run.changed.wait_for(lambda: self._admission.room > 0, "room for another prompt group")
            while self._admission.room > 0:
                self._admit_next()
            self._replicas.dispatch()

    async def give_up(self) -> None:
        """Once the loops are cancelled: conversations and waits under way are not gone on with. For the ledger their
        groups are live still, and answers that still come are passed over."""
        self._given_up = True
        for task in (going_on := list(self._going_on)):
            task.cancel()
        await asyncio.gather(*going_on, return_exceptions=True)

    def drop_surplus(self) -> None:
        """After the last step, once the loops are cancelled: what is live still is not needed."""
        now, asked = self._run.clock.now(), [*self._asked]
        self._asked.clear()
        self._replicas.withdraw(RequestId(kind=RequestKind.TRAINING, name=group_id) for group_id in asked)
        self._buffer.drop_all(reason=NOT_NEEDED, time_s=now)
        for record in self._ledger.live():
            self._ledger.drop(record.id, reason=NOT_NEEDED, time_s=now)

    def _admit_next(self) -> None:
        group, now = self._source.next(), self._run.clock.now()
        record = self._ledger.admit(
            group.id, position=group.position, current_version=self._run.counters.num_steps, time_s=now
        )
        if group.drop_reason is not None:
            self._ledger.drop(group.id, reason=group.drop_reason, time_s=now)
        else:
            self._submit(group, record)

    def _submit(self, group: PromptGroup, record: GroupRecord) -> None:
        self._asked[group.id] = group
        spec = self._requests.of(group, min_version=record.oldest_version, attempt=record.attempt)
        self._router.submit(spec, time_s=self._run.clock.real_s())

    def _note_started(self, event: RequestsStarted) -> None:
        for request_id in event.ids:
            if request_id.kind is RequestKind.TRAINING:
                self._ledger.start(request_id.name, version=event.version, time_s=self._run.clock.now())

    def _note_returned(self, event: RequestsReturned) -> None:
        for request_id in event.ids:
            if request_id.kind is RequestKind.TRAINING:
                self._ledger.requeue(request_id.name, time_s=self._run.clock.now())

    def _note_answer(self, event: RequestAnswered) -> None:
        if event.id.kind is RequestKind.TRAINING and not self._given_up:
            group = self._asked.pop(event.id.name)
            wait_s = 0.0 if self._workload is None else self._workload.group_tool_wait_s(group.position)
            answered = GeneratedGroup(group=group, output=event.output)
            if wait_s:
                self._go_on(self._finish_after(wait_s, answered))
            elif self._stages.conversations is not None and event.output.error is None:
                self._go_on(self._converse(self._stages.conversations, answered))
            else:
                self._finished.put_nowait(answered)

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._run.tasks.create_task(work)
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)

    async def _finish_after(self, wait_s: float, answered: GeneratedGroup) -> None:
        """For tools, while the group holds no step of an engine."""
        await self._run.clock.sleep(wait_s)
        self._finished.put_nowait(answered)

    async def _converse(self, conversations: ConversationPlayer, answered: GeneratedGroup) -> None:
        """The answers are first turns: play their conversations to the end."""
        group, min_version = answered.group, self._ledger.get(answered.group.id).oldest_version
        turns = partial(turns_in_training, self._requests, group, min_version=min_version)
        try:
            played = await conversations.play(group, answered.output, turns)
        except EnvironmentFailedError as error:
            self._drop_failed(answered, self._environment, str(error))
        else:
            self._environment.share.note(failed=False)
            self._finished.put_nowait(played)

    async def score(self) -> None:
        """Score finished groups, as many at once as there are workers, and put them into the buffer."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._stages.scorer.num_workers):
                tasks.create_task(self._score_finished())

    async def _score_finished(self) -> None:
        while True:
            generated = await self._finished.get()
            if generated.output.error is not None:
                self._drop_refused(generated.group, generated.output.error)
                continue
            self._refusals.note(failed=False)
            try:
                samples = await asyncio.to_thread(reward_samples, generated, self._stages.decode)
                scores = await self._stages.scorer.score(samples)
            except RewardError as error:
                self._drop_failed(generated, self._reward, str(error))
                continue
            errors = [score.error for score in scores if score.error is not None]
            if errors:
                self._drop_failed(generated, self._reward, errors[0])
            else:
                self._reward.share.note(failed=False)
                self._take(generated, with_environment(scores, generated.conversations))

    def _take(self, generated: GeneratedGroup, scores: Sequence[Score]) -> None:
        group = generated.group
        if not self._is_kept(group):
            self._drop(group, WORKLOAD_FILTERED)
            self._tell_finished(generated, kept=False)
            return
        if any(score.value is None for score in scores):
            self._drop(group, REWARD_LEFT_OUT)
            self._tell_finished(generated, kept=False)
            self._note_left_out()
            return
        self._num_left_out_in_a_row = 0
        scored = scored_group(
            generated,
            scores,
            attempt=self._ledger.get(group.id).attempt,
            has_greedy_answer=self._requests.sampling.num_greedy > 0,
        )
        num_steps = self._run.counters.num_steps
        if self._group_filter and not self._group_filter.keeps(scored.compared_rewards, num_steps=num_steps):
            self._drop(group, EQUAL_REWARDS)
            self._tell_finished(generated, kept=False)
            return
        now = self._run.clock.now()
        self._admission.note(kept=True)
        self._ledger.score(group.id, time_s=now)
        self._buffer.put(scored, time_s=now)
        self._tell_finished(generated, kept=True)
        self._run.changed.notify()

    def _is_kept(self, group: PromptGroup) -> bool:
        """By the load of a paced run."""
        workload = self._workload
        return workload is None or workload.keeps(group.position, workload.progress(self._run.counters.num_steps))

    def _tell_finished(self, generated: GeneratedGroup, *, kept: bool) -> None:
        self._run.events.emit(GroupFinished(kept=kept, num_tokens=generated.num_generated_tokens))

    def _drop(self, group: PromptGroup, reason: str) -> None:
        self._admission.note(kept=False)
        self._ledger.drop(group.id, reason=reason, time_s=self._run.clock.now())
        self._run.changed.notify()

    def _drop_refused(self, group: PromptGroup, error: str) -> None:
        self._drop(group, ENGINE_ERROR)
        if self._refusals.note(failed=True):
            raise UserError(
                f"the engine refused {self._refusals.num_failed} of the last {WINDOW} prompt groups, more than "
                f"rollout.max_refusal_share allows ({self._refusals.max_failed}); the last, {group.id}: {error}"
            )
        logger.warning("prompt %s was refused by the engine, and is dropped: %s", group.id, error)

    def _drop_failed(self, generated: GeneratedGroup, failing: _Failing, error: str) -> None:
        self._drop(generated.group, failing.reason)
        self._tell_finished(generated, kept=False)
        share = failing.share
        if share.note(failed=True):
            raise failing.error(
                f"{error}\nthe {failing.name} failed for {share.num_failed} of the last {WINDOW} prompt groups, more "
                f"than {failing.name}.max_failure_share allows ({share.max_failed})"
            )
        counts = (share.num_failed, WINDOW, share.max_failed)
        logger.warning("%s; its group is dropped (%d of the last %d, %d may be)", error, *counts)

    def _note_left_out(self) -> None:
        self._num_left_out_in_a_row += 1
        number = self._num_left_out_in_a_row
        if number >= WINDOW and number & (number - 1) == 0:  # each time that it has doubled
            logger.warning("the reward returned None for each of the last %d prompt groups: nothing is trained", number)
