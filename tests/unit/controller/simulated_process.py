"""The process of a simulated worker: it takes calls, and dies or hangs on demand."""

from __future__ import annotations

import asyncio
from typing import Any

from simulated_world import World

from rlserve.errors import WorkerFailedError, WorkerLostError
from rlserve.pool.base import SignOfLife
from rlserve.pool.notices.base import Notice


class SimulatedProcess:
    """It is called as Ray's actors are. ``kill`` ends it; ``hang`` lets it answer nothing any more."""

    def __init__(self, world: World, slot_id: str) -> None:
        self.world = world
        self.slot_id = slot_id
        self.dead = self.hung = False
        self.notice: Notice | None = None
        """What it was told."""
        self._calls: set[asyncio.Future[Any]] = set()

    def __getattr__(self, method: str) -> SimulatedMethod:
        if method.startswith("do_"):
            raise AttributeError(method)
        return SimulatedMethod(self, method)

    def kill(self) -> None:
        """The process is gone: calls that wait, and all later ones, fail."""
        self.dead = True
        for call in self._calls:
            if not call.done():
                call.set_exception(WorkerLostError(f"{self.slot_id}: its process died"))

    def hang(self) -> None:
        """Stopped, as by SIGSTOP."""
        self.hung = True

    def call(self, method: str, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Begin a call."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        if self.dead:
            result.set_exception(WorkerLostError(f"{self.slot_id}: its process died"))
            return result
        self._calls.add(result)
        result.add_done_callback(self._calls.discard)
        if not self.hung:
            task = loop.create_task(self._do(method, arguments, result))
            self.world.tasks.add(task)
            task.add_done_callback(self.world.tasks.discard)
        return result

    async def _do(self, method: str, arguments: tuple[Any, ...], result: asyncio.Future[Any]) -> None:
        try:
            found = await getattr(self, f"do_{method}")(*arguments)
        except WorkerFailedError as error:
            found = error
        except Exception as error:  # a check of the worker: the test must fail on it
            self.world.faults.append(error)
            found = error
        if result.done() or self.hung:
            return
        if isinstance(found, Exception):
            result.set_exception(found)
        else:
            result.set_result(found)

    async def do_sign_of_life(self, wait_s: float) -> SignOfLife:
        await asyncio.sleep(wait_s)
        return SignOfLife(notice=self.notice)


class SimulatedMethod:
    """A method of a worker, called as Ray's are."""

    def __init__(self, process: SimulatedProcess, method: str) -> None:
        self._process, self._method = process, method

    def remote(self, *arguments: Any) -> Any:
        call = self._process.call(self._method, arguments)
        return (arguments[0], call) if self._method == "send_weights" else call  # the first is for receivers alone
