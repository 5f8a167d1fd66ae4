"""Scoring the policy on held-out prompts, by the replicas and the reward that the run uses. It can never end a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlserve.config.tree import EvaluationConfig
from rlserve.controller.events import EventBus, HeldOutAnswered
from rlserve.controller.request_desk import RequestDesk
from rlserve.engine.requests.request import RequestOutput, SamplingParams
from rlserve.rollout.groups import PromptGroup, ScoredAnswer
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.samples import reward_sample
from rlserve.rollout.scoring import AnswerScorer, score_in_groups
from rlserve.tracking import names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """What the policy achieved on the held-out prompts."""

    share_right: float | None
    """Share of the scored answers whose reward reaches ``success_threshold``; None where none could be scored."""
    num_failed: int
    """Answers that could not be scored: the engine refused the prompt, or the reward failed."""
    num_left_out: int = 0
    """Answers that the reward left out, by None."""

    def __str__(self) -> str:
        share = "none" if self.share_right is None else f"{self.share_right:.3f}"
        counts = {"not scored": self.num_failed, "left out by the reward": self.num_left_out}
        others = ", ".join(f"{number} answers {what}" for what, number in counts.items() if number)
        return f"{share} ({others})" if others else share

    def metrics(self) -> Mapping[str, float]:
        """Under the names of ``rlserve.tracking.names``."""
        share = {} if self.share_right is None else {names.HELD_OUT: self.share_right}
        return {**share, names.HELD_OUT_FAILED: self.num_failed, names.HELD_OUT_LEFT_OUT: self.num_left_out}


class Evaluation:
    """Answers every held-out prompt once and counts the right answers."""

    def __init__(
        self,
        config: EvaluationConfig,
        prompts: Sequence[PromptGroup],
        *,
        desk: RequestDesk,
        scorer: AnswerScorer,
        decode: Callable[[NDArray[np.int32]], str],
        sampling: SamplingParams,
        request_timeout_s: float,
        events: EventBus,
    ) -> None:
        """``sampling`` is that of training. Its ``n`` is how many answers are scored together, so that
        ``reward.timeout_s`` means the same here; the temperature is the evaluation's own."""
        self._config = config
        self._prompts = prompts
        self._desk = desk
        self._scorer = scorer
        self._decode = decode
        self._request_timeout_s = request_timeout_s
        self._events = events
        self._num_scored_together = sampling.n
        self._sampling = SamplingParams(
            n=1,
            temperature=config.temperature,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop=sampling.stop,
            stop_token_ids=sampling.stop_token_ids,
        )

    async def score(self, step: int) -> HeldOutScore:
        """The score of the policy after ``step`` steps; a replica with older weights is not asked.

        What cannot be scored is left out and counted, with one warning; what the reward leaves out (None) is counted
        apart. May be cancelled at any time.
        """
        outputs = await self._desk.answers([self._request(step, *item) for item in enumerate(self._prompts)])
        errors = [
            f"held-out prompt {prompt.id}: {output.error}"
            for prompt, output in zip(self._prompts, outputs, strict=True)
            if output.error is not None
        ]
        samples = await asyncio.to_thread(self._samples, outputs)
        scores = await score_in_groups(self._scorer, samples, self._num_scored_together)
        answered = [
            (prompt, output) for prompt, output in zip(self._prompts, outputs, strict=True) if output.error is None
        ]
        answers = [
            ScoredAnswer(prompt=prompt, sample=output.samples[0], reward=score.value, reward_parts=score.parts)
            for (prompt, output), score in zip(answered, scores, strict=True)
        ]
        self._events.emit(HeldOutAnswered(step=step, answers=answers))
        errors += [score.error for score in scores if score.error is not None]
        rewards = [score.value for score in scores if score.value is not None]
        if errors:
            logger.warning(
                "%d of %d held-out answers could not be scored and are left out; the first: %s",
                len(errors),
                len(self._prompts),
                errors[0],
            )
        num_right = sum(reward >= self._config.success_threshold for reward in rewards)
        return HeldOutScore(
            share_right=num_right / len(rewards) if rewards else None,
            num_failed=len(errors),
            num_left_out=sum(score.value is None and score.error is None for score in scores),
        )

    def _request(self, step: int, position: int, prompt: PromptGroup) -> RequestSpec:
        return RequestSpec(
            id=RequestId(kind=RequestKind.EVALUATION, name=f"{step}/{prompt.id}"),
            prompt_token_ids=prompt.prompt_token_ids,
            sampling=self._sampling,
            position=position,
            min_version=step,
            timeout_s=self._request_timeout_s,
        )

    def _samples(self, outputs: Sequence[RequestOutput]) -> list[RewardSample]:
        """What the reward is shown. Decoding takes a microsecond a token, so this runs in a thread."""
        return [
            self._sample(prompt, output)
            for prompt, output in zip(self._prompts, outputs, strict=True)
            if output.error is None
        ]

    def _sample(self, prompt: PromptGroup, output: RequestOutput) -> RewardSample:
        (answer,) = output.samples
        return reward_sample(prompt, answer, id=prompt.id, response=self._decode(answer.tokens.token_ids))
