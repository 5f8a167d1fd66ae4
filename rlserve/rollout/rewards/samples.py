"""From what the engine generated to what a reward is shown."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.requests.request import FinishReason, SampleOutput
from rlserve.rollout.groups import Conversation, GeneratedGroup, PromptGroup
from rlserve.rollout.rewards.base import RewardSample

Decode = Callable[[NDArray[np.int32]], str]
"""The text of tokens."""


def reward_samples(generated: GeneratedGroup, decode: Decode) -> list[RewardSample]:
    """The answers of a group. Decoding takes a microsecond a token."""
    conversations = generated.conversations or (None,) * len(generated.output.samples)
    return [
        _sample_of(generated.group, sample, conversation, decode)
        for sample, conversation in zip(generated.output.samples, conversations, strict=True)
    ]


def _sample_of(
    group: PromptGroup, sample: SampleOutput, conversation: Conversation | None, decode: Decode
) -> RewardSample:
    token_ids = sample.tokens.token_ids
    shown = reward_sample(group, sample, id=f"{group.id}/{sample.index}", response=decode(token_ids))
    if conversation is None:
        return shown
    return replace(
        shown,
        turns=tuple(decode(token_ids[start:end]) for start, end in conversation.turn_spans()),
        environment_reward=conversation.reward,
    )


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
