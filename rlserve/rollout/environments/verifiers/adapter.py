"""One conversation with an environment of the verifiers package.

The environment runs its own rollout, in a task beside the calls, and a turn is the answer that this one waits for. So
set-up, stop conditions, tools, the rubric and clean-up are the package's own code in the package's own order.

::

    reset:  run_rollout ──asks──► the row's prompt?
    step:   the turn ──► run_rollout ──asks──► what is new in the messages is the reply
                                     └─ends──► rewards of the rubric, over
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.base import Environment, EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.environments.verifiers.tool_calls import Said, read_tool_calls
from rlserve.rollout.environments.verifiers.turn_client import MODEL, Asked, TurnClient
from rlserve.rollout.groups import Message

logger = logging.getLogger(__name__)


class VerifiersEnvironment(Environment):
    """Plays one row of the environment's data set."""

    def __init__(self, environment: Any) -> None:
        """``environment`` is a loaded ``verifiers.Environment``."""
        self._environment = environment
        self._client = TurnClient()
        self._rollout: asyncio.Task[Mapping[str, Any]] | None = None
        self._heard: list[Message] = []
        """All messages that the environment has asked the model about."""

    async def reset(self, task: EnvironmentTask) -> None:
        rollout = self._environment.run_rollout(dict(task.row), self._client, MODEL, {})
        self._rollout = asyncio.create_task(rollout)
        asked = await self._next_question()
        if asked is None:
            self._last_reply()
            raise EnvironmentFailedError("ended before the model was asked anything")
        tools = [tool.name for tool in self._environment.tool_defs or ()]
        if [tool.name for tool in asked.tools] != tools:
            raise EnvironmentFailedError(f"gave this row other tools than the environment has ({', '.join(tools)})")
        self._heard = [_plain(message) for message in asked.messages]
        if self._heard != [_plain(message) for message in task.messages or ()]:
            raise EnvironmentFailedError("asks something else than the prompt of its data set, which the model answers")

    async def step(self, turn: ModelTurn) -> Reply:
        said = read_tool_calls(turn.text) if self._environment.tool_defs else Said(content=turn.text)
        self._client.answer(turn, said)
        asked = await self._next_question()
        if asked is None:
            return self._last_reply()
        if turn.is_last:
            return await self.truncate()
        return Reply(messages=tuple(self._new_messages(asked, said)))

    async def truncate(self) -> Reply:
        self._client.refuse()
        if await self._next_question() is not None:
            raise EnvironmentFailedError("goes on asking, although it was told that the model has no further turn")
        last = self._last_reply()
        return Reply(text="", reward=last.reward, metrics=last.metrics)  # not over by itself: it counts as cut

    async def close(self) -> None:
        if self._rollout is None or self._rollout.done():
            return
        self._rollout.cancel()
        await asyncio.wait([self._rollout])
        if not self._rollout.cancelled() and (error := self._rollout.exception()) is not None:
            logger.warning("an environment that was given up did not clean up: %s: %s", type(error).__name__, error)

    async def _next_question(self) -> Asked | None:
        """What the environment wants to have answered; None once its rollout has ended."""
        assert self._rollout is not None, "reset came first"
        question = asyncio.create_task(self._client.asked.get())
        try:
            await asyncio.wait([question, self._rollout], return_when=asyncio.FIRST_COMPLETED)
            return question.result() if question.done() else None
        finally:
            question.cancel()

    def _last_reply(self) -> Reply:
        """Of a rollout that has ended: what its rubric gives.

        Raises:
            EnvironmentFailedError: it ended with an error of the package's; others are raised as they are.
        """
        assert self._rollout is not None, "reset came first"
        output = self._rollout.result()
        if output.get("error") is not None:
            raise EnvironmentFailedError(f"ended with an error: {output['error']['error_chain_repr']}")
        return Reply(over=True, reward=output["reward"], metrics=output["metrics"] or {})

    def _new_messages(self, asked: Asked, said: Said) -> Sequence[Message]:
        """What the environment says after the model's turn."""
        messages = [_plain(message) for message in asked.messages]
        known = len(self._heard) + 1
        turn = {"role": "assistant", "content": said.content or ""}
        if messages[: known - 1] != self._heard or messages[known - 1 : known] != [turn]:
            raise EnvironmentFailedError("changed messages that the model has read or written, which stay as they are")
        self._heard = messages
        return messages[known:]


def _plain(message: Any) -> Message:
    """A message as a chat template takes it, without tool calls, which are read in the model's own tokens.

    Raises:
        EnvironmentFailedError: it has more than text.
    """
    fields: Mapping[str, Any] = message if isinstance(message, Mapping) else message.model_dump()
    content = fields.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    strange = next((part for part in parts if part.get("type") != "text"), None)
    if strange is not None:
        raise EnvironmentFailedError(f"said a part of type {strange.get('type')}, and the model reads text")
    plain = {"role": fields["role"], "content": "".join(part["text"] for part in parts)}
    if fields["role"] == "tool":
        plain["tool_call_id"] = fields["tool_call_id"]
    return plain
