"""What the prompt groups of a training step tell by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlserve.engine.requests.request import FinishReason
from rlserve.rollout.groups import ScoredGroup, mean_reward_parts
from rlserve.tracking import names


def group_metrics(groups: Sequence[ScoredGroup]) -> Mapping[str, float]:
    """Share of answers that were cut, and of groups with equal rewards; the latter only where groups have several. The
    mean of each further number of the reward."""
    finish_reasons = [sample.finish_reason for scored in groups for sample in scored.output.samples]
    metrics = {names.CLIP_RATIO: finish_reasons.count(FinishReason.LENGTH) / len(finish_reasons)}
    compared = [scored.rewards for scored in groups if len(scored.rewards) > 1]
    if compared:
        metrics[names.FRAC_REWARD_ZERO_STD] = sum(min(rewards) == max(rewards) for rewards in compared) / len(compared)
    return {**metrics, **mean_reward_parts(groups)}
