"""The rollout loop on real bookkeeping, over a fake source of prompts, scorer and replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from controller_fakes import output, run_context, settled

from rlserve.controller.answer_stages import AnswerStages
from rlserve.controller.clock import RunClock
from rlserve.controller.context import Books
from rlserve.controller.events import EventBus, RequestAnswered, RequestsStarted
from rlserve.controller.rollout_loop import FailureLimits, RolloutLoop
from rlserve.engine.requests.request import FinishReason, RequestOutput, SamplingParams
from rlserve.errors import RewardError
from rlserve.rollout.admission import PromptAdmission
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.failure_share import WINDOW
from rlserve.rollout.group_filter import GroupFilter
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.ledger import Ledger
from rlserve.rollout.requests.base import RequestId
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.workload.workload import Workload


class FakeSource:
    """Numbered prompts without end."""

    def __init__(self) -> None:
        self.position = 0

    def next(self) -> PromptGroup:
        self.position += 1
        return self.get(f"0:{self.position - 1}", position=self.position - 1)

    def get(self, group_id: str, *, position: int) -> PromptGroup:
        return PromptGroup(
            id=group_id, position=position, row=position, prompt_text="1+1=", prompt_token_ids=(1, 2), answer="2"
        )


class FakeScorer:
    """Answers at once with ``scores``, or raises them, or waits for the group's own gate."""

    num_workers = 2

    def __init__(self) -> None:
        self.scores: Score | RewardError = Score(value=1.0)
        self.value_of_index: tuple[float, ...] | None = None
        """In the place of ``scores``: by the sample's index in its group."""
        self.gates: dict[str, asyncio.Event] = {}
        self.under_way: set[str] = set()

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        group_id = samples[0].id.partition("/")[0]
        self.under_way.add(group_id)
        if group_id in self.gates:
            await self.gates[group_id].wait()
        self.under_way.remove(group_id)
        if isinstance(self.scores, RewardError):
            raise self.scores
        if self.value_of_index is not None:
            return [Score(value=value) for value in self.value_of_index]
        return [self.scores for _ in samples]


class FakeReplicas:
    """One replica that takes everything at once."""

    def __init__(self, router: Router, events: EventBus) -> None:
        self.router = router
        self.events = events
        self.held: list[str] = []
        router.join("r0", version=0, capacity=100, time_s=0.0)

    def withdraw(self, request_ids: Iterable[RequestId]) -> None:
        for request_id in request_ids:
            if (found := self.router.withdraw(request_id)) is not None:
                self.held.remove(str(found[1]))

    def dispatch(self) -> None:
        for replica_id, requests in self.router.assign(time_s=0.0).items():
            ids = tuple(RequestId.parse(request.id) for request in requests)
            self.events.emit(RequestsStarted(ids=ids, version=self.router.version(replica_id)))
            self.held += [request.id for request in requests]


class Setting:
    """Room for four groups: two a step, one step ahead."""

    def __init__(
        self,
        workload: Workload | None = None,
        clock: RunClock | None = None,
        *,
        num_groups: int | None = None,
        group_filter: GroupFilter | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        self.sampling = sampling or SamplingParams(n=1)
        self.ledger = Ledger(prompts_per_step=2, max_staleness=1)
        self.admission = PromptAdmission(self.ledger, num_groups=num_groups)
        self.router = Router()
        self.buffer = SampleBuffer(self.ledger, prompts_per_step=2)
        self.scorer = FakeScorer()
        self.context = run_context(clock=clock)
        self.replicas = FakeReplicas(self.router, self.context.events)
        fakes: Any = self
        source: Any = FakeSource()
        self.loop = RolloutLoop(
            self.context,
            Books(
                ledger=self.ledger,
                admission=self.admission,
                buffer=self.buffer,
                router=self.router,
                group_filter=group_filter,
            ),
            source=source,
            requests=TrainingRequests(sampling=self.sampling, run_seed=0, workload=workload),
            replicas=fakes.replicas,
            stages=AnswerStages(decode=str, scorer=fakes.scorer),
            limits=FailureLimits(
                max_refusal_share=2 / WINDOW,
                max_reward_failure_share=2 / WINDOW,
                max_environment_failure_share=2 / WINDOW,
            ),
        )

    def finish_all(self, error: str | None = None) -> None:
        self.finish(len(self.replicas.held), error)

    def finish(self, number: int, error: str | None = None) -> None:
        finished, self.replicas.held = self.replicas.held[:number], self.replicas.held[number:]
        for request_id in finished:
            refusal = RequestOutput(request_id=request_id, samples=(), error=error)
            answer = output(request_id, FinishReason.STOP, num_samples=self.sampling.n) if error is None else refusal
            found_id = self.router.finished("r0", answer)
            assert found_id is not None
            self.context.events.emit(RequestAnswered(id=found_id, output=answer))

    async def keep_failing(self, error: str | None) -> None:
        while True:
            self.finish_all(error)
            await settled()


def start(setting: Setting, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
    return [
        tasks.create_task(setting.loop.admit()),
        tasks.create_task(setting.loop.score()),
    ]
