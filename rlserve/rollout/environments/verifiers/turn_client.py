"""What an environment of the verifiers package asks for the model's answers: each waits until there is a turn.

::

    environment.run_rollout ──get_response(messages)──► asked ──► whoever plays the conversation
                            ◄──────── Response ──────── answer / refuse
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from verifiers.clients.client import Client
from verifiers.errors import OverlongPromptError
from verifiers.types import Response, ResponseMessage

from rlserve.rollout.environments.base import ModelTurn
from rlserve.rollout.environments.verifiers.tool_calls import Said

MODEL = "policy"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A conversation that the environment wants to have answered."""

    messages: list[Any]
    tools: list[Any]


class TurnClient:
    """Stands for a server of the model. It has one question at a time."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Asked] = asyncio.Queue()
        self._answer: asyncio.Future[Any] | None = None

    async def get_response(
        self, prompt: list[Any], model: str, sampling_args: Any, tools: list[Any] | None = None, **_: Any
    ) -> Any:
        """The model's next turn as a ``verifiers.types.Response``.

        Raises:
            RuntimeError: another question has no answer yet.
            OverlongPromptError: the model has no further turn.
        """
        if self._answer is not None:
            raise RuntimeError("asks the model several things at once, and a conversation has one turn after the other")
        self._answer = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(Asked(messages=list(prompt), tools=list(tools or ())))
        try:
            return await self._answer
        finally:
            self._answer = None

    def answer(self, turn: ModelTurn, said: Said) -> None:
        """Give the turn that was asked for; passed over where nobody waits any more."""
        calls = [
            {"id": f"call_{turn.number}_{index}", "name": call.name, "arguments": call.arguments}
            for index, call in enumerate(said.tool_calls)
        ]
        message = ResponseMessage(
            content=said.content,
            tool_calls=calls or None,
            finish_reason=("tool_calls" if calls else "stop") if turn.finished else "length",
            is_truncated=not turn.finished,
        )
        if self._answer is not None:
            response = Response(id=f"turn_{turn.number}", created=int(time.time()), model=MODEL, message=message)
            self._answer.set_result(response)

    def refuse(self) -> None:
        """Say that the model has no further turn, as a server does whose context is full."""
        if self._answer is not None:
            self._answer.set_exception(OverlongPromptError("the conversation has no room for a further turn"))

    async def close(self) -> None:
        """There is nothing to close."""


Client.register(TurnClient)  # of the package's class it has the method that environments call, and no server behind it
