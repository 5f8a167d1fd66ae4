"""Keeping some answers in full: which ones, and what is written of each.

Only the choice of what may be kept is made here and now; texts are decoded later, in the threads of the sinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rlserve.controller.events import GroupsTrained, HeldOutAnswered
from rlserve.rollout.groups import ScoredAnswer, ScoredGroup
from rlserve.tracking.answers import Answer, Keep, Kind, chosen
from rlserve.tracking.tracker import Tracker

Decode = Callable[[NDArray[np.int32]], str]


class AnswerLog:
    """Hands answers in full to the tracker."""

    def __init__(self, tracker: Tracker, keep: Keep, decode: Decode) -> None:
        self._tracker = tracker
        self._keep = keep
        self._decode = decode

    def note_trained(self, event: GroupsTrained) -> None:
        """A training step was done."""
        kept = [event.groups[index] for index in chosen(len(event.groups), self._keep)]
        self._tracker.log_answers(event.step, "training", lambda: list(_trained(event.step, kept, self._decode)))

    def note_held_out(self, event: HeldOutAnswered) -> None:
        """The policy was asked."""
        kept = [event.answers[index] for index in chosen(len(event.answers), self._keep)]
        self._tracker.log_answers(event.step, "held_out", lambda: list(_held_out(event.step, kept, self._decode)))


def _trained(step: int, groups: Sequence[ScoredGroup], decode: Decode) -> Iterator[Answer]:
    for scored in groups:
        parts = scored.reward_parts or ({},) * len(scored.rewards)
        for sample, reward, reward_parts in zip(scored.output.samples, scored.rewards, parts, strict=True):
            answer = ScoredAnswer(prompt=scored.group, sample=sample, reward=reward, reward_parts=reward_parts)
            oldest_version = min(version for version, _, _ in sample.weight_spans)
            yield _in_full(answer, decode, step=step, kind="training", staleness=step - 1 - oldest_version)


def _held_out(step: int, answers: Sequence[ScoredAnswer], decode: Decode) -> Iterator[Answer]:
    for answer in answers:
        yield _in_full(answer, decode, step=step, kind="held_out", staleness=0)


def _in_full(scored: ScoredAnswer, decode: Decode, *, step: int, kind: Kind, staleness: int) -> Answer:
    prompt, sample = scored.prompt, scored.sample
    return Answer(
        step=step,
        kind=kind,
        group_id=prompt.id,
        index=sample.index,
        prompt=prompt.prompt_rendered or prompt.prompt_text,
        reference=prompt.answer,
        response=decode(sample.tokens.token_ids),
        reward=scored.reward,
        reward_parts=scored.reward_parts,
        finish_reason=str(sample.finish_reason),
        num_prompt_tokens=len(prompt.prompt_token_ids),
        num_response_tokens=len(sample.tokens),
        weight_spans=sample.weight_spans,
        staleness=staleness,
    )
