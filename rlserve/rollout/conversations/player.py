"""Playing conversations: the model's turns from whoever answers requests, the replies from environments.

::

    first turn (of the group's request) ─► step ─► reply ─► request: all tokens so far ─► turn ─► step ─► … ─► over
    its process is lost, and another environment is to blame ──► the conversation begins anew, with its first turn
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.requests.request import RequestOutput, SampleOutput
from rlserve.errors import EnvironmentFailedError, TurnRefusedError, WorkerLostError
from rlserve.rollout.conversations.reply_tokens import ReplyTokens
from rlserve.rollout.conversations.transcript import ConversationLimits, Transcript, TurnState
from rlserve.rollout.environments.base import Environments, EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.groups import Conversation, GeneratedGroup, PromptGroup
from rlserve.rollout.requests.base import RequestSpec
from rlserve.rollout.requests.turns import TurnRequests

logger = logging.getLogger(__name__)

_MAX_LOSSES = 3
"""Times that a conversation may lose the process of its environment."""


class ConversationPlayer:
    """Carries samples that have their first turn on to the end of their conversations."""

    def __init__(
        self,
        environments: Environments,
        *,
        name: str,
        ask: Callable[[RequestSpec], Awaitable[RequestOutput]],
        decode: Callable[[NDArray[np.int32]], str],
        reply_tokens: ReplyTokens,
        limits: ConversationLimits,
    ) -> None:
        """``name`` is the environment's, for messages; ``ask`` answers a request, or says why it is refused."""
        self._environments = environments
        self._name = name
        self._ask = ask
        self._decode = decode
        self._reply_tokens = reply_tokens
        self._limits = limits

    async def play(
        self, group: PromptGroup, output: RequestOutput, requests: Callable[[int], TurnRequests]
    ) -> GeneratedGroup:
        """The conversations of all samples of a group, side by side. ``requests`` makes those of a sample by its index.

        Where the engine refuses a turn, the group's output says so, as for a prompt that it refuses.

        Raises:
            EnvironmentFailedError: an environment failed; the other conversations of the group are given up.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                played = [
                    tasks.create_task(self._play_sample(group, sample, requests(sample.index)))
                    for sample in output.samples
                ]
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]
            if not isinstance(first, TurnRefusedError):
                raise first from None
            refused = RequestOutput(request_id=output.request_id, samples=(), error=str(first))
            return GeneratedGroup(group=group, output=refused)
        samples, conversations = zip(*(task.result() for task in played), strict=True)
        whole = RequestOutput(request_id=output.request_id, samples=samples)
        return GeneratedGroup(group=group, output=whole, conversations=conversations)

    async def _play_sample(
        self, group: PromptGroup, first: SampleOutput, requests: TurnRequests
    ) -> tuple[SampleOutput, Conversation]:
        task = task_of(group, first.index)
        turn: SampleOutput | None = first
        for _ in range(_MAX_LOSSES):
            try:
                return await self._play_once(group, task, turn, first.index, requests)
            except WorkerLostError as error:
                lost = error
                logger.warning("%s; the conversation on prompt %s begins anew", error, task.id)
            turn = None
        raise EnvironmentFailedError(
            f"environment {self._name} on prompt {task.id}: {lost}, and that {_MAX_LOSSES} times in this conversation; "
            "what it printed is in logs/environment.log of the run's folder"
        )

    async def _play_once(
        self, group: PromptGroup, task: EnvironmentTask, turn: SampleOutput | None, index: int, requests: TurnRequests
    ) -> tuple[SampleOutput, Conversation]:
        transcript = Transcript(group.prompt_token_ids, self._limits)
        session = await self._environments.open(task)
        try:
            while transcript.state is not TurnState.OVER:
                transcript.take_turn(await self._next_turn(transcript, requests) if turn is None else turn)
                turn = None
                reply = await session.step(self._shown(transcript))
                transcript.take_reply(reply, self._said(reply, transcript, task))
            if transcript.dropped_reply:
                transcript.take_remainder(await session.truncate())
        finally:
            session.close()
        return transcript.ended(index=index, environment_s=session.duration_s)

    async def _next_turn(self, transcript: Transcript, requests: TurnRequests) -> SampleOutput:
        spec = requests.of(
            transcript.token_ids,
            number=transcript.num_turns,
            max_tokens=transcript.max_tokens,
            newest_version=transcript.newest_version,
            continues=transcript.last_prompt,
        )
        output = await self._ask(spec)
        if output.error is not None:
            raise TurnRefusedError(f"turn {transcript.num_turns + 1} of its conversation: {output.error}")
        return output.samples[0]

    def _shown(self, transcript: Transcript) -> ModelTurn:
        turn = transcript.last_turn
        return ModelTurn(
            text=self._decode(turn.token_ids),
            token_ids=tuple(turn.token_ids.tolist()),
            number=transcript.num_turns - 1,
            finished=not transcript.is_cut,
            is_last=transcript.is_last,
        )

    def _said(self, reply: Reply, transcript: Transcript, task: EnvironmentTask) -> tuple[int, ...]:
        if reply.over or transcript.is_last:
            return ()
        try:
            return self._reply_tokens(reply, transcript.last_turn.token_ids.tolist())
        except EnvironmentFailedError as error:
            raise EnvironmentFailedError(f"environment {self._name} on prompt {task.id}: {error}") from None


def task_of(group: PromptGroup, index: int) -> EnvironmentTask:
    """What the conversation of one sample is about."""
    return EnvironmentTask(
        id=f"{group.id}/{index}",
        prompt=group.prompt_text,
        answer=group.answer,
        messages=group.messages,
        row=group.columns,
    )
