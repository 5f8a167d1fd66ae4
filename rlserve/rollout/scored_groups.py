"""From what was generated and scored to what is trained on: the greedy answer of a group goes apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlserve.rollout.groups import GeneratedGroup, GreedyAnswer, ScoredGroup
from rlserve.rollout.rewards.base import Score


def scored_group(
    generated: GeneratedGroup, scores: Sequence[Score], *, attempt: int, has_greedy_answer: bool
) -> ScoredGroup:
    """The group for the trainer. ``scores`` are of all its samples, each with a value; the greedy answer, if there is
    one, is the last."""
    rewards = tuple(score.value for score in scores if score.value is not None)
    assert len(rewards) == len(scores), "what is left out is not trained on"
    samples, conversations = generated.output.samples, generated.conversations
    num_trained = len(samples) - has_greedy_answer
    greedy = None
    if has_greedy_answer:
        loss_mask = conversations[-1].loss_mask if conversations else None
        greedy = GreedyAnswer(
            reward=rewards[-1],
            num_tokens=len(samples[-1].tokens) if loss_mask is None else int(loss_mask.sum()),
            finish_reason=str(samples[-1].finish_reason),
        )
    return ScoredGroup(
        group=generated.group,
        output=replace(generated.output, samples=samples[:num_trained]),
        conversations=conversations[:num_trained],
        rewards=rewards[:num_trained],
        reward_parts=tuple(score.parts for score in scores[:num_trained]),
        greedy=greedy,
        attempt=attempt,
    )
