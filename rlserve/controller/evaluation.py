"""Scoring the policy on held-out prompts, by the replicas and the reward that the run uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlserve.config.tree import EvaluationConfig
from rlserve.controller.replicas import Replicas
from rlserve.engine.request import Request, RequestOutput, SamplingParams
from rlserve.errors import UserError
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import RewardSample
from rlserve.rollout.rewards.samples import reward_sample
from rlserve.rollout.scoring import Scorer

_SCORED_AT_ONCE = 64


class Evaluation:
    """Answers every held-out prompt once and counts the right answers."""

    def __init__(
        self,
        config: EvaluationConfig,
        prompts: Sequence[PromptGroup],
        *,
        replicas: Replicas,
        scorer: Scorer,
        decode: Callable[[tuple[int, ...]], str],
        sampling: SamplingParams,
    ) -> None:
        """``sampling`` gives the seed, the stops and the longest answer; the temperature is the evaluation's own."""
        self._config = config
        self._prompts = prompts
        self._replicas = replicas
        self._scorer = scorer
        self._decode = decode
        self._sampling = SamplingParams(
            n=1,
            temperature=config.temperature,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop=sampling.stop,
            stop_token_ids=sampling.stop_token_ids,
        )

    async def score(self, step: int) -> float:
        """Share of the held-out prompts whose reward reaches ``success_threshold``, with the weights in force.

        Raises:
            UserError: the engine refused a held-out prompt.
            RewardError: the reward failed on one.
        """
        requests = [
            Request(
                id=f"evaluation/{step}/{prompt.id}", prompt_token_ids=prompt.prompt_token_ids, sampling=self._sampling
            )
            for prompt in self._prompts
        ]
        outputs = await self._replicas.generate(requests)
        samples = [self._sample(prompt, output) for prompt, output in zip(self._prompts, outputs, strict=True)]
        rewards: list[float] = []
        for start in range(0, len(samples), _SCORED_AT_ONCE):
            rewards += await self._scorer.score(samples[start : start + _SCORED_AT_ONCE])
        return sum(reward >= self._config.success_threshold for reward in rewards) / len(rewards)

    def _sample(self, prompt: PromptGroup, output: RequestOutput) -> RewardSample:
        if output.error is not None:
            raise UserError(f"held-out prompt {prompt.id}: {output.error}")
        (answer,) = output.samples
        return reward_sample(prompt, answer, id=prompt.id, response=self._decode(answer.token_ids))
