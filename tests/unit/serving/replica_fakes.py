"""Replicas without processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving_fakes import generated

from rlserve.engine.config import EngineConfig
from rlserve.engine.requests.delta import RequestDelta, SampleDelta
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.errors import UserError
from rlserve.serving.config import HealthConfig
from rlserve.serving.replicas.messages import Message, News, Ready, Start, Submit
from rlserve.serving.replicas.pool import ReplicaPool
from rlserve.serving.replicas.replica import Replica, ReplicaPlace
from rlserve.serving.routing.round_robin import RoundRobin

HEALTH = HealthConfig(suspect_after_s=1, lost_after_s=2, stuck_after_s=5, start_timeout_s=10)
READY = Ready(vocab_size=44, max_model_len=100, eos_token_ids=(2,), max_num_sequences=8)


def a_request(name: str = "r", **sampling: object) -> Request:
    return Request(id=name, prompt_token_ids=(4, 5), sampling=SamplingParams(**sampling))  # type: ignore[arg-type]


def delta(name: str, start: int, tokens: list[int], reason: FinishReason | None = None, index: int = 0) -> RequestDelta:
    sample = SampleDelta(index=index, start=start, tokens=generated(tokens), finish_reason=reason)
    return RequestDelta(request_id=name, samples=(sample,))


def the_end(name: str) -> RequestDelta:
    return RequestDelta(request_id=name, samples=(), output=RequestOutput(request_id=name, samples=()))


class FakeReplica(Replica):
    """A replica without a process: a test says when it is ready, and when it ends."""

    def __init__(self, place: ReplicaPlace, on_news: Callable[[News], None], clock: Callable[[], float]) -> None:
        super().__init__(place, on_news, clock)
        self.sent: list[Message] = []
        self.ends = asyncio.Event()
        self.refuses: str | None = None
        self.becomes_ready = True

    async def run(self) -> None:
        self.ends.clear()
        if self.refuses is not None:
            raise UserError(self.refuses)
        if self.becomes_ready:
            self._take(READY)
        await self.ends.wait()

    async def reap(self) -> None:
        pass

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.ends.set()

    @property
    def submitted(self) -> list[Request]:
        return [request for message in self.sent if isinstance(message, Submit) for request in message.requests]

    def tell(self, *deltas: RequestDelta) -> None:
        self._take(News(deltas=deltas))


def make_pool(
    num_replicas: int = 2,
    health: HealthConfig = HEALTH,
    clock: Callable[[], float] = lambda: 0.0,
    *,
    num_wanted: int | None = None,
    drain_timeout_s: float = 10.0,
) -> tuple[ReplicaPool, list[FakeReplica]]:
    start = Start(model_path="/m", engine=EngineConfig(), beat_interval_s=1, max_pieces_per_s=1e3)
    places = [ReplicaPlace(name=str(number), start=start, environment={}) for number in range(num_replicas)]
    made: list[FakeReplica] = []

    def make(place: ReplicaPlace, on_news: Callable[[News], None], clock: Callable[[], float]) -> Replica:
        made.append(FakeReplica(place, on_news, clock))
        return made[-1]

    pool = ReplicaPool(
        places, RoundRobin(), health, num_wanted=num_wanted, drain_timeout_s=drain_timeout_s, clock=clock, make=make
    )
    return pool, made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
