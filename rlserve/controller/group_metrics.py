"""What the prompt groups of a training step tell by themselves: metrics, and answers in full. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.request import FinishReason
from rlserve.rollout.groups import ScoredGroup, mean_reward_parts
from rlserve.tracking import names
from rlserve.tracking.answers import Answer, Keep, chosen


def group_metrics(groups: Sequence[ScoredGroup]) -> Mapping[str, float]:
    """Share of answers that were cut, and of groups with equal rewards; the latter only where groups have several. The
    mean of each further number of the reward."""
    finish_reasons = [sample.finish_reason for scored in groups for sample in scored.output.samples]
    metrics = {names.CLIP_RATIO: finish_reasons.count(FinishReason.LENGTH) / len(finish_reasons)}
    compared = [scored.rewards for scored in groups if len(scored.rewards) > 1]
    if compared:
        metrics[names.FRAC_REWARD_ZERO_STD] = sum(min(rewards) == max(rewards) for rewards in compared) / len(compared)
    return {**metrics, **mean_reward_parts(groups)}


def trained_answers(
    step: int, groups: Sequence[ScoredGroup], keep: Keep, decode: Callable[[NDArray[np.int32]], str]
) -> Iterator[Answer]:
    """All answers of those groups that ``keep`` chooses."""
    for index in chosen(len(groups), keep):
        scored = groups[index]
        parts = scored.reward_parts or ({},) * len(scored.rewards)
        for sample, reward, reward_parts in zip(scored.output.samples, scored.rewards, parts, strict=True):
            spans = sample.weight_spans
            yield Answer(
                step=step,
                kind="training",
                group_id=scored.group.id,
                index=sample.index,
                prompt=scored.group.prompt_rendered or scored.group.prompt_text,
                reference=scored.group.answer,
                response=decode(sample.tokens.token_ids),
                reward=reward,
                reward_parts=reward_parts,
                finish_reason=str(sample.finish_reason),
                num_prompt_tokens=len(scored.group.prompt_token_ids),
                num_response_tokens=len(sample.tokens),
                weight_spans=spans,
                staleness=step - 1 - min(version for version, _, _ in spans),
            )
