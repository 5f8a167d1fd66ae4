"""What the environment adds to the score of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlserve.rollout.groups import Conversation
from rlserve.rollout.rewards.base import Score

ENVIRONMENT = "environment"
"""Part of the scores: the environment's own rewards, added up."""


def with_environment(scores: Sequence[Score], conversations: Sequence[Conversation]) -> list[Score]:
    """The scores of a reward with the environment's rewards added, and its further numbers as parts. What the reward
    left out or failed on stays so; without conversations all stays as it is."""
    if not conversations:
        return list(scores)
    return [_added(score, conversation) for score, conversation in zip(scores, conversations, strict=True)]


def _added(score: Score, conversation: Conversation) -> Score:
    if score.error is not None:
        return score
    parts = {ENVIRONMENT: conversation.reward, **conversation.metrics, **score.parts}
    return replace(score, value=None if score.value is None else score.value + conversation.reward, parts=parts)
