"""From what the engine generated to what a reward is shown."""

from __future__ import annotations

import copy

from rlserve.engine.requests.request import FinishReason, SampleOutput
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import RewardSample


def reward_sample(group: PromptGroup, sample: SampleOutput, *, id: str, response: str) -> RewardSample:
    """One answer to the prompt of ``group``; ``response`` is its text. Nothing that a reward does to the sample
    reaches the other samples of the group."""
    return RewardSample(
        id=id,
        prompt=group.prompt_text,
        prompt_rendered=group.prompt_rendered,
        messages=copy.deepcopy(group.messages),
        response=response,
        answer=copy.deepcopy(group.answer),
        row=group.columns,
        finished=sample.finish_reason is FinishReason.STOP,
        prompt_token_ids=group.prompt_token_ids,
        response_token_ids=sample.token_ids,
    )
