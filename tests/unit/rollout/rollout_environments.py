"""Environments in memory, for tests of what plays conversations."""

from __future__ import annotations

from collections.abc import Callable

from rlserve.errors import EnvironmentFailedError, WorkerLostError
from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn, Reply

Script = Callable[[EnvironmentTask, ModelTurn], Reply | EnvironmentFailedError | WorkerLostError]


class ScriptedSession:
    """Answers by a function, in no time."""

    duration_s = 0.25

    def __init__(self, task: EnvironmentTask, script: Script) -> None:
        self.task = task
        self.script = script
        self.turns: list[ModelTurn] = []
        self.num_truncated = 0
        self.num_closed = 0

    async def step(self, turn: ModelTurn) -> Reply:
        self.turns.append(turn)
        reply = self.script(self.task, turn)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def truncate(self) -> Reply:
        self.num_truncated += 1
        return Reply(over=True, reward=0.125, metrics={"truncated": 1.0})

    def close(self) -> None:
        self.num_closed += 1


class ScriptedEnvironments:
    """Opens sessions that answer by one function."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sessions: list[ScriptedSession] = []

    async def start(self) -> None:
        pass

    async def open(self, task: EnvironmentTask) -> ScriptedSession:
        self.sessions.append(ScriptedSession(task, self.script))
        return self.sessions[-1]

    def close(self) -> None:
        pass
