"""Held-out scoring with fake replicas and a fake scorer: what cannot be scored is left out, and ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from controller_fakes import output, recorded, until

from rlserve.config.tree import EvaluationConfig
from rlserve.controller.answer_stages import AnswerStages
from rlserve.controller.evaluation import Evaluation, HeldOutScore
from rlserve.controller.events import EventBus, HeldOutAnswered
from rlserve.engine.requests.request import FinishReason, RequestOutput, SamplingParams
from rlserve.errors import RewardError
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.base import RequestSpec
from rlserve.rollout.rewards.base import RewardSample, Score


class FakeDesk:
    def __init__(self, refused: Sequence[int] = ()) -> None:
        self.refused = refused
        self.events = EventBus()
        self.answered = recorded(self.events, HeldOutAnswered)

    async def answers(self, specs: Sequence[RequestSpec]) -> list[RequestOutput]:
        assert all(spec.sampling.n == 1 and spec.min_version == 7 for spec in specs), "the weights in force"
        assert len({spec.id for spec in specs}) == len(specs)
        return [
            RequestOutput(request_id=str(spec.id), samples=(), error="too long")
            if index in self.refused
            else output(str(spec.id), FinishReason.STOP)
            for index, spec in enumerate(specs)
        ]


class FakeScorer:
    num_workers = 4

    def __init__(self, score: Callable[[RewardSample], Score]) -> None:
        self.sizes: list[int] = []
        self._score = score

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        self.sizes.append(len(samples))
        await asyncio.sleep(0)
        return [self._score(sample) for sample in samples]


def evaluation(desk: FakeDesk, scorer: Any, *, num_prompts: int = 10) -> Evaluation:
    prompts = [
        PromptGroup(id=f"held_out:{row}", position=0, row=row, prompt_text="", prompt_token_ids=(1,), answer=str(row))
        for row in range(num_prompts)
    ]
    fakes: Any = desk
    return Evaluation(
        EvaluationConfig(),
        prompts,
        desk=fakes,
        stages=AnswerStages(decode=str, scorer=scorer),
        sampling=SamplingParams(n=4),
        request_timeout_s=5.0,
        max_failure_share=0.25,
        events=desk.events,
    )


def by_row(scores: dict[int, Score]) -> Callable[[RewardSample], Score]:
    return lambda sample: scores.get(int(sample.answer or 0), Score(value=1.0))


def test_answers_are_scored_in_groups_of_the_size_that_the_deadline_is_meant_for() -> None:
    scorer = FakeScorer(by_row({3: Score(value=0.0)}))
    found = asyncio.run(evaluation(FakeDesk(), scorer).score(7))
    assert scorer.sizes == [4, 4, 2]
    assert found == HeldOutScore(share_right=0.9, num_failed=0)
    assert found.metrics() == {
        "val-core/held_out/mean@1": 0.9,
        "val-core/held_out/num_failed": 0,
        "val-core/held_out/num_left_out": 0,
    }


def test_what_cannot_be_scored_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    scorer = FakeScorer(by_row({0: Score(value=0.0), 5: Score(error="KeyError"), 6: Score(value=None)}))
    desk = FakeDesk(refused=[9])
    found = asyncio.run(evaluation(desk, scorer).score(7))
    assert found == HeldOutScore(share_right=6 / 7, num_failed=2, num_left_out=1)
    assert found.metrics()["val-core/held_out/num_left_out"] == 1
    assert str(found) == "0.857 (2 answers not scored, 1 answers left out by the reward)"
    (event,) = desk.answered
    answers = event.answers
    assert (event.step, [answer.prompt.row for answer in answers]) == (7, list(range(9))), "the tenth was refused"
    assert [answer.reward for answer in answers] == [0.0, *[1.0] * 4, None, None, *[1.0] * 2]
    assert caplog.messages == [
        "2 of 10 held-out answers could not be scored and are left out; the first: held-out prompt held_out:9: too long"
    ]


def test_a_reward_that_always_fails_gives_no_score(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        num_workers = 4

        async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
            raise RewardError(f"no answer on {samples[0].id}")

    found = asyncio.run(evaluation(FakeDesk(), Failing()).score(7))
    assert found == HeldOutScore(share_right=None, num_failed=10)
    assert found.metrics() == {"val-core/held_out/num_failed": 10, "val-core/held_out/num_left_out": 0}
    assert str(found) == "none (10 answers not scored)"
    assert len(caplog.messages) == 1


def test_prompts_that_nobody_answers_give_no_score() -> None:
    found = asyncio.run(evaluation(FakeDesk(refused=range(10)), FakeScorer(by_row({}))).score(7))
    assert found == HeldOutScore(share_right=None, num_failed=10)


def test_it_can_be_broken_off() -> None:
    class Hanging:
        num_workers = 4

        def __init__(self) -> None:
            self.num_asked = self.num_left = 0

        async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
            self.num_asked += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.num_left += 1
            raise AssertionError

    async def scenario() -> None:
        scorer = Hanging()
        task = asyncio.create_task(evaluation(FakeDesk(), scorer).score(7))
        await until(lambda: scorer.num_asked == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scorer.num_left == 3

    asyncio.run(scenario())
