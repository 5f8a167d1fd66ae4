"""Where requests outside the ledger are made and answered: evaluation, and whoever else asks the replicas.

::

    answers(specs) ──submit──► router ──► replicas ──RequestAnswered──► the future of each request
                                 └─ expire: no progress by its deadline ──► an output that says where it is
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rlserve.controller.context import RunContext
from rlserve.controller.events import RequestAnswered
from rlserve.controller.replicas import Replicas
from rlserve.engine.requests.request import RequestOutput
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.router import Expired, Router

_LOOK_S = 1.0
"""How often deadlines are looked at."""


class RequestDesk:
    """Hands requests to the router and their answers to whoever waits for them."""

    def __init__(self, run: RunContext, router: Router, replicas: Replicas) -> None:
        self._run = run
        self._router = router
        self._replicas = replicas
        self._answers: dict[RequestId, asyncio.Future[RequestOutput]] = {}
        self._looked_s = run.clock.real_s()
        run.events.subscribe(RequestAnswered, self._note_answer)

    async def answer(self, spec: RequestSpec) -> RequestOutput:
        """As ``answers``, to one."""
        (output,) = await self.answers([spec])
        return output

    async def answers(self, specs: Sequence[RequestSpec]) -> list[RequestOutput]:
        """The answer to each, by whatever replicas there are; survives the loss of any of them.

        A request that makes no progress by its deadline has an output with an error, as one that the engine refuses. If
        the caller is cancelled, so are the requests.
        """
        loop, now = asyncio.get_running_loop(), self._run.clock.real_s()
        answers = {spec.id.first: loop.create_future() for spec in specs}
        for spec in specs:
            self._router.submit(spec, time_s=now)
        self._answers |= answers
        self._replicas.dispatch()
        try:
            while pending := [answer for answer in answers.values() if not answer.done()]:
                await asyncio.wait(pending, timeout=_LOOK_S)
                self._expire()
        finally:
            for key in answers:
                del self._answers[key]
            self._replicas.withdraw(answers)
        return [answer.result() for answer in answers.values()]

    def _note_answer(self, event: RequestAnswered) -> None:
        answer = self._answers.get(event.id.first)
        if answer is not None and not answer.done():
            answer.set_result(event.output)

    def _expire(self) -> None:
        """Once each time to look, however many wait."""
        now = self._run.clock.real_s()
        if now - self._looked_s < _LOOK_S / 2:
            return
        self._looked_s = now
        for expired in self._router.expire(time_s=now):
            self._answers[expired.id.first].set_result(
                RequestOutput(request_id=str(expired.id), samples=(), error=_where(expired))
            )


def _where(expired: Expired) -> str:
    place = f"with {expired.replica_id}"
    if expired.replica_id is None:
        place = f"waiting for a replica with version {expired.min_version} of the weights or a newer one"
    if expired.id.kind is RequestKind.CLIENT:
        return f"no replica has gone on with it for {expired.waited_s:.3g} s (rollout.server.wait_timeout_s), {place}"
    return f"no progress for {expired.waited_s:.3g} s (rollout.request_timeout_s), {place}"
