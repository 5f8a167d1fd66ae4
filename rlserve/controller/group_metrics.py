"""What the prompt groups of a training step tell by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rlserve.engine.requests.request import FinishReason
from rlserve.rollout.groups import Conversation, ScoredGroup, mean_reward_parts
from rlserve.tracking import names


def group_metrics(groups: Sequence[ScoredGroup]) -> Mapping[str, float]:
    """Share of answers that were cut, and of groups with equal rewards; the latter only where groups have several. The
    mean of each further number of the reward, and of the rewards of greedy answers."""
    finish_reasons = [sample.finish_reason for scored in groups for sample in scored.output.samples]
    metrics = {names.CLIP_RATIO: finish_reasons.count(FinishReason.LENGTH) / len(finish_reasons)}
    compared = [scored.compared_rewards for scored in groups if len(scored.compared_rewards) > 1]
    if compared:
        metrics[names.FRAC_REWARD_ZERO_STD] = sum(min(rewards) == max(rewards) for rewards in compared) / len(compared)
    greedy = [scored.greedy.reward for scored in groups if scored.greedy is not None]
    if greedy:
        metrics["rollout/greedy_score/mean"] = fmean(greedy)
    conversations = [conversation for scored in groups for conversation in scored.conversations]
    return {**metrics, **mean_reward_parts(groups), **(_conversation_metrics(conversations) if conversations else {})}


def _conversation_metrics(conversations: Sequence[Conversation]) -> Mapping[str, float]:
    turns = [conversation.num_turns for conversation in conversations]
    num_tokens = sum(len(conversation.loss_mask) for conversation in conversations)
    num_trained = sum(int(conversation.loss_mask.sum()) for conversation in conversations)
    return {
        "rollout/num_turns/mean": fmean(turns),
        "rollout/num_turns/max": max(turns),
        "rollout/num_turns/min": min(turns),
        "rollout/environment_s": fmean(conversation.environment_s for conversation in conversations),
        "response_length/environment_share": 1 - num_trained / num_tokens,
    }
