"""Held-out scoring with fake replicas and a fake scorer: what cannot be scored is left out, and ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from controller_fakes import output, recorded, settled

from rlserve.config.tree import EvaluationConfig
from rlserve.controller.evaluation import Evaluation, HeldOutScore
from rlserve.controller.events import EventBus, HeldOutAnswered
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SamplingParams
from rlserve.errors import DeadlineExceededError, RewardError
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import RewardSample, Score


class FakeReplicas:
    def __init__(self, refused: Sequence[int] = ()) -> None:
        self.refused = refused
        self.events = EventBus()
        self.answered = recorded(self.events, HeldOutAnswered)

    async def generate(self, requests: Sequence[Request]) -> list[RequestOutput]:
        assert all(request.sampling.n == 1 for request in requests)
        return [
            RequestOutput(request_id=request.id, samples=(), error="too long")
            if index in self.refused
            else output(request.id, FinishReason.STOP)
            for index, request in enumerate(requests)
        ]


class FakeScorer:
    def __init__(self, score: Callable[[RewardSample], Score]) -> None:
        self.sizes: list[int] = []
        self._score = score

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        self.sizes.append(len(samples))
        await asyncio.sleep(0)
        return [self._score(sample) for sample in samples]


def evaluation(replicas: FakeReplicas, scorer: Any, *, num_prompts: int = 10) -> Evaluation:
    prompts = [
        PromptGroup(id=f"held_out:{row}", position=0, row=row, prompt_text="", prompt_token_ids=(1,), answer=str(row))
        for row in range(num_prompts)
    ]
    fakes: Any = replicas
    return Evaluation(
        EvaluationConfig(),
        prompts,
        replicas=fakes,
        scorer=scorer,
        decode=str,
        sampling=SamplingParams(n=4),
        events=replicas.events,
    )


def by_row(scores: dict[int, Score]) -> Callable[[RewardSample], Score]:
    return lambda sample: scores.get(int(sample.answer or 0), Score(value=1.0))


def test_answers_are_scored_in_groups_of_the_size_that_the_deadline_is_meant_for() -> None:
    scorer = FakeScorer(by_row({3: Score(value=0.0)}))
    found = asyncio.run(evaluation(FakeReplicas(), scorer).score(0))
    assert scorer.sizes == [4, 4, 2]
    assert found == HeldOutScore(share_right=0.9, num_failed=0)
    assert found.metrics() == {
        "val-core/held_out/mean@1": 0.9,
        "val-core/held_out/num_failed": 0,
        "val-core/held_out/num_left_out": 0,
    }


def test_what_cannot_be_scored_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    scorer = FakeScorer(by_row({0: Score(value=0.0), 5: Score(error="KeyError"), 6: Score(value=None)}))
    replicas = FakeReplicas(refused=[9])
    found = asyncio.run(evaluation(replicas, scorer).score(0))
    assert found == HeldOutScore(share_right=6 / 7, num_failed=2, num_left_out=1)
    assert found.metrics()["val-core/held_out/num_left_out"] == 1
    assert str(found) == "0.857 (2 answers not scored, 1 answers left out by the reward)"
    (event,) = replicas.answered
    answers = event.answers
    assert (event.step, [answer.prompt.row for answer in answers]) == (0, list(range(9))), "the tenth was refused"
    assert [answer.reward for answer in answers] == [0.0, *[1.0] * 4, None, None, *[1.0] * 2]
    assert caplog.messages == [
        "2 of 10 held-out answers could not be scored and are left out; the first: held-out prompt held_out:9: too long"
    ]


def test_a_reward_that_always_fails_gives_no_score(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
            raise RewardError(f"no answer on {samples[0].id}")

    found = asyncio.run(evaluation(FakeReplicas(), Failing()).score(0))
    assert found == HeldOutScore(share_right=None, num_failed=10)
    assert found.metrics() == {"val-core/held_out/num_failed": 10, "val-core/held_out/num_left_out": 0}
    assert str(found) == "none (10 answers not scored)"
    assert len(caplog.messages) == 1


def test_prompts_that_nobody_answers_give_no_score() -> None:
    class Silent(FakeReplicas):
        async def generate(self, requests: Sequence[Request]) -> list[RequestOutput]:
            raise DeadlineExceededError("no replica made a step")

    found = asyncio.run(evaluation(Silent(), FakeScorer(by_row({}))).score(0))
    assert found == HeldOutScore(share_right=None, num_failed=10)


def test_it_can_be_broken_off() -> None:
    class Hanging:
        def __init__(self) -> None:
            self.num_left = 0

        async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
            try:
                await asyncio.Event().wait()
            finally:
                self.num_left += 1
            raise AssertionError

    async def scenario() -> None:
        scorer = Hanging()
        task = asyncio.create_task(evaluation(FakeReplicas(), scorer).score(0))
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scorer.num_left == 3

    asyncio.run(scenario())
