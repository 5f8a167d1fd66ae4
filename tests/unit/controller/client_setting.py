"""Clients of a run on virtual time, in place of the HTTP server: each asks again and again, and checks its answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from itertools import count

from rlserve.controller.clients.desk import ClientDesk
from rlserve.engine.requests.delta import RequestDelta
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.serving.replicas.live_request import LiveSample


@dataclass(kw_only=True)
class Heard:
    """What one client was told of one request."""

    sample: LiveSample = field(default_factory=lambda: LiveSample(0))
    outputs: list[RequestOutput] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, delta: RequestDelta) -> None:
        assert not self.outputs, "nothing comes after the end"
        for sample in delta.samples:
            self.sample.append(sample)
        if delta.output is not None:
            self.outputs.append(delta.output)
            self.changed.set()

    @property
    def versions(self) -> list[int]:
        """Of the weights that made each token, as they were streamed."""
        return [int(version) for version in self.sample.output().tokens.weight_versions]

    def check(self) -> None:
        """Assert that the stream is the whole answer, each token once, by weights that never got older."""
        (output,) = self.outputs
        assert output.error is None, output.error
        (answer,), told = output.samples, self.sample.output()
        assert answer.finish_reason is told.finish_reason is FinishReason.STOP
        assert list(answer.tokens.token_ids) == list(told.tokens.token_ids) == [*range(len(told.tokens))]
        assert list(answer.tokens.weight_versions) == self.versions == sorted(self.versions)


class Clients:
    """``num`` of them, who leave now and then before the end, and wait for their answers when the run ends."""

    def __init__(self, desk: ClientDesk, *, num: int, share_leaving: float = 0.1) -> None:
        self.heard: list[Heard] = []
        self.num_left = 0
        self._desk = desk
        self._num = num
        self._share_leaving = share_leaving
        self._chance = random.Random(5)
        self._numbers = count()
        self._ending = self._ended = False
        self._end = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._num):
                tasks.create_task(self._talk())
        self._end.set()

    async def stop(self) -> None:
        self._ending = True
        await self._end.wait()

    async def _talk(self) -> None:
        while not self._ending:
            heard = Heard()
            number = next(self._numbers)
            request = Request(id="same", prompt_token_ids=(9, number % 50), sampling=SamplingParams(max_tokens=999))
            request_id = self._desk.begin(request, heard.take)
            if self._chance.random() < self._share_leaving:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard.changed.wait(), self._chance.uniform(0.0, 2.0))
                self._desk.end(request_id)
                self.num_left += 1
            else:
                await heard.changed.wait()
                self.heard.append(heard)
            await asyncio.sleep(self._chance.uniform(0.0, 1.0))
