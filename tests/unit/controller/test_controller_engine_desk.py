"""Requests answered by an engine of this process, with a fake engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from controller_fakes import output

from rlserve.controller.engine_desk import EngineDesk
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.errors import ModelError
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec


class FakeEngine:
    """Answers one request a step."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.waiting: list[Request] = []
        self.is_closed = False

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    def add(self, request: Request) -> bool:
        self.waiting.append(request)
        return True

    def step(self) -> list[RequestOutput]:
        if self.fails:
            raise ModelError("broken")
        return [output(self.waiting.pop(0).id, FinishReason.STOP)]

    def close(self) -> None:
        self.is_closed = True


def spec(name: str) -> RequestSpec:
    return RequestSpec(
        id=RequestId(kind=RequestKind.EVALUATION, name=name),
        prompt_token_ids=(1,),
        sampling=SamplingParams(),
        position=0,
    )


def test_whoever_asks_is_answered_also_while_others_are() -> None:
    engine: Any = FakeEngine()

    async def twice(desk: EngineDesk, name: str) -> list[str]:
        first = await desk.answer(spec(name))
        return [first.request_id, (await desk.answer(spec(f"{name}.1"))).request_id]

    async def scenario() -> None:
        async with EngineDesk(engine) as desk:
            assert await asyncio.gather(twice(desk, "a"), twice(desk, "b")) == [
                ["evaluation/a#0", "evaluation/a.1#0"],
                ["evaluation/b#0", "evaluation/b.1#0"],
            ]
            assert (await desk.answer(spec("late"))).error is None
        assert engine.is_closed

    asyncio.run(scenario())


def test_a_failure_of_the_engine_reaches_all_who_wait() -> None:
    engine: Any = FakeEngine(fails=True)

    async def scenario() -> None:
        async with EngineDesk(engine) as desk:
            found = await asyncio.gather(desk.answer(spec("a")), desk.answer(spec("b")), return_exceptions=True)
            assert [str(error) for error in found] == ["broken", "broken"]
            with pytest.raises(ModelError):
                await desk.answer(spec("later"))

    asyncio.run(scenario())
