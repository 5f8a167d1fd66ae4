"""Scoring the policy on held-out prompts, by the replicas and the reward that the run uses. It can never end a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from rlserve.config.tree import EvaluationConfig
from rlserve.controller.answer_stages import AnswerStages
from rlserve.controller.evaluator import Evaluator
from rlserve.controller.events import EventBus, HeldOutAnswered
from rlserve.controller.request_desk import RequestDesk
from rlserve.engine.requests.request import RequestOutput, SamplingParams
from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.conversations.scores import with_environment
from rlserve.rollout.groups import GeneratedGroup, PromptGroup, ScoredAnswer
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.turns import TurnRequests
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.samples import reward_samples
from rlserve.rollout.scoring import score_in_groups
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
    mean_parts: Mapping[str, float] = field(default_factory=dict)
    """Mean of each further number of the reward or the environment, by name."""

    def __str__(self) -> str:
        share = "none" if self.share_right is None else f"{self.share_right:.3f}"
        counts = {"not scored": self.num_failed, "left out by the reward": self.num_left_out}
        others = ", ".join(f"{number} answers {what}" for what, number in counts.items() if number)
        return f"{share} ({others})" if others else share

    def metrics(self) -> Mapping[str, float]:
        """Under the names of ``rlserve.tracking.names``."""
        share = {} if self.share_right is None else {names.HELD_OUT: self.share_right}
        parts = {names.held_out_part(name): mean for name, mean in self.mean_parts.items()}
        return {**share, names.HELD_OUT_FAILED: self.num_failed, names.HELD_OUT_LEFT_OUT: self.num_left_out, **parts}


class Evaluation(Evaluator):
    """Answers every held-out prompt once and counts the right answers."""

    def __init__(
        self,
        config: EvaluationConfig,
        prompts: Sequence[PromptGroup],
        *,
        desk: RequestDesk,
        stages: AnswerStages,
        sampling: SamplingParams,
        request_timeout_s: float,
        max_failure_share: float,
        events: EventBus,
    ) -> None:
        """``sampling`` is that of training. Its ``n`` is how many answers are scored together, so that
        ``reward.timeout_s`` means the same here; the temperature is the evaluation's own."""
        self._config = config
        self._prompts = prompts
        self._desk = desk
        self._stages = stages
        self._request_timeout_s = request_timeout_s
        self._max_failure_share = max_failure_share
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
        requests = [self._request(step, position, prompt) for position, prompt in enumerate(self._prompts)]
        outputs = await self._desk.answers(requests)
        found = await asyncio.gather(*map(self._whole, self._prompts, requests, outputs))
        errors = [
            f"held-out prompt {generated.group.id}: {generated.output.error}"
            for generated in found
            if generated.output.error is not None
        ]
        answered = [generated for generated in found if generated.output.error is None]
        samples = await asyncio.to_thread(self._samples, answered)
        scores = with_environment(
            await score_in_groups(
                self._stages.scorer, samples, self._num_scored_together, max_failure_share=self._max_failure_share
            ),
            [conversation for generated in answered for conversation in generated.conversations],
        )
        answers = [
            ScoredAnswer(
                prompt=generated.group, sample=generated.output.samples[0], reward=score.value, reward_parts=score.parts
            )
            for generated, score in zip(answered, scores, strict=True)
        ]
        num_tokens = sum(generated.num_generated_tokens for generated in found)
        self._events.emit(HeldOutAnswered(step=step, answers=answers, num_tokens=num_tokens))
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
            mean_parts=_mean_parts(scores),
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

    async def _whole(self, prompt: PromptGroup, first: RequestSpec, output: RequestOutput) -> GeneratedGroup:
        """The answer, or the whole conversation that it is the first turn of."""
        answered, conversations = GeneratedGroup(group=prompt, output=output), self._stages.conversations
        if conversations is None or output.error is not None:
            return answered
        turns = TurnRequests(
            kind=first.id.kind,
            name=first.id.name,
            sampling=first.sampling,
            position=first.position,
            min_version=first.min_version,
            timeout_s=first.timeout_s,
        )
        try:
            return await conversations.play(prompt, output, lambda index: turns)
        except EnvironmentFailedError as error:
            return replace(answered, output=RequestOutput(request_id=output.request_id, samples=(), error=str(error)))

    def _samples(self, answered: Sequence[GeneratedGroup]) -> list[RewardSample]:
        """What the reward is shown."""
        return [
            replace(sample, id=generated.group.id)
            for generated in answered
            for sample in reward_samples(generated, self._stages.decode)
        ]


def _mean_parts(scores: Sequence[Score]) -> dict[str, float]:
    """Of the scores that have the part."""
    names_found = dict.fromkeys(name for score in scores for name in score.parts)
    return {name: fmean(score.parts[name] for score in scores if name in score.parts) for name in names_found}
