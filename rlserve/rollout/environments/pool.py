"""All processes of a run that hold environments: each is opened in the one that holds the fewest."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from typing import Any

from rlserve.errors import EnvironmentFailedError, WorkerLostError
from rlserve.rollout.environments.base import Environments, EnvironmentSession, EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.environments.messages import Action, Answer
from rlserve.rollout.environments.worker import EnvironmentWorker


class EnvironmentPool(Environments):
    """Opens at most so many at once."""

    def __init__(self, workers: Sequence[EnvironmentWorker], *, max_concurrent: int) -> None:
        self._workers = tuple(workers)
        self._room = asyncio.Semaphore(max_concurrent)
        self._numbers = itertools.count()
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await asyncio.gather(*(worker.start() for worker in self._workers))

    async def open(self, task: EnvironmentTask) -> EnvironmentSession:
        await self._room.acquire()
        worker = min(self._workers, key=lambda worker: worker.num_sessions)
        worker.num_sessions += 1
        session = _Session(self, worker, next(self._numbers))
        try:
            await worker.start()
            await session.reset(task)
        except BaseException:
            session.close()
            raise
        return session

    async def closed(self) -> None:
        """Wait until all that were let go are closed."""
        await asyncio.gather(*self._closing)

    def close(self) -> None:
        for task in self._closing:
            task.cancel()
        for worker in self._workers:
            worker.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the background."""
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def leave(self, worker: EnvironmentWorker) -> None:
        """One environment of a process is gone."""
        worker.num_sessions -= 1
        self._room.release()


class _Session(EnvironmentSession):
    def __init__(self, pool: EnvironmentPool, worker: EnvironmentWorker, number: int) -> None:
        self._pool = pool
        self._worker = worker
        self._number = number
        self._incarnation: int | None = None
        self._is_closed = False
        self._duration_s = 0.0

    @property
    def duration_s(self) -> float:
        return self._duration_s

    async def reset(self, task: EnvironmentTask) -> None:
        self._incarnation = self._worker.incarnation
        await self._call("reset", task)

    async def step(self, turn: ModelTurn) -> Reply:
        return await self._reply("step", turn)

    async def truncate(self) -> Reply:
        return await self._reply("truncate")

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pool.spawn(self._close())

    async def _close(self) -> None:
        """There is room for another once this one is closed. What fails here fails nobody's conversation, and is in the
        log of the environments."""
        try:
            if self._incarnation == self._worker.incarnation:
                await self._call("close")
        except (EnvironmentFailedError, WorkerLostError):
            return
        finally:
            self._pool.leave(self._worker)

    async def _reply(self, action: Action, argument: ModelTurn | None = None) -> Reply:
        answer = await self._call(action, argument)
        assert answer.reply is not None, f"the answer to a {action} is a reply or an error"
        return answer.reply

    async def _call(self, action: Action, argument: EnvironmentTask | ModelTurn | None = None) -> Answer:
        if self._incarnation != self._worker.incarnation:
            raise WorkerLostError("the process of this environment was lost")
        answer = await self._worker.call(self._number, action, argument)
        self._duration_s += answer.duration_s
        if answer.error is not None:
            raise EnvironmentFailedError(answer.error)
        return answer
