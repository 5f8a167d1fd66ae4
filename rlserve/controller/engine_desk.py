"""Where requests are answered by an engine of this process, without replicas: as :class:`RequestDesk` in a run."""

from __future__ import annotations

import asyncio
from types import TracebackType

from rlserve.engine import Engine, Request, RequestOutput
from rlserve.rollout.requests.base import RequestSpec


class EngineDesk:
    """Steps the engine, in another thread, as long as anybody waits; within an ``async with``."""

    def __init__(self, engine: Engine) -> None:
        """The engine is closed at the end."""
        self._engine = engine
        self._new: list[Request] = []
        self._came = asyncio.Event()
        self._answers: dict[str, asyncio.Future[RequestOutput]] = {}
        self._failure: Exception | None = None

    async def __aenter__(self) -> EngineDesk:
        self._stepping = asyncio.create_task(self._step())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stepping.cancel()
        await asyncio.wait([self._stepping])
        self._engine.close()

    async def answer(self, spec: RequestSpec) -> RequestOutput:
        """The answer to a request; one with an error where the engine refuses it.

        Raises:
            RlserveError: the engine failed.
        """
        if self._failure is not None:
            raise self._failure
        answer = self._answers[str(spec.id)] = asyncio.get_running_loop().create_future()
        self._new.append(Request(id=str(spec.id), prompt_token_ids=spec.prompt_token_ids, sampling=spec.sampling))
        self._came.set()
        output: RequestOutput = await answer
        return output

    async def _step(self) -> None:
        try:
            while True:
                await self._came.wait()
                self._came.clear()
                await self._answer_all()
        except Exception as error:
            self._failure = error
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)

    async def _answer_all(self) -> None:
        while self._new or self._engine.has_work:
            new, self._new = self._new, []
            for request in new:
                self._engine.add(request)
            for output in await asyncio.to_thread(self._engine.step):
                self._answers.pop(output.request_id).set_result(output)
            await asyncio.sleep(0)  # whoever was answered may ask again
