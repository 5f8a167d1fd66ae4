"""Several rewards as one: their weighted sum is trained on, and each is kept as a part under its name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlserve.rollout.rewards.base import Reward, RewardSample, Score


@dataclass(frozen=True, kw_only=True)
class Term:
    """One reward of the sum."""

    reward: Reward
    weight: float


class WeightedSum(Reward):
    """``Σ weight · reward``, one reward after the other."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self._terms = dict(terms)

    @property
    def scores_at_once(self) -> bool:
        return all(term.reward.scores_at_once for term in self._terms.values())

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """The sum, with each reward as a part ``NAME`` and its own parts as ``NAME/PART``.

        A reward that gives None for every answer to a prompt has nothing to say of it and is not counted there. One
        that gives None for some of them only leaves those out: answers to a prompt are compared with each other, so
        their sums must be of the same rewards.
        """
        scored = {name: term.reward.score(samples) for name, term in self._terms.items()}
        applies = {name: _prompts_with_values(samples, scores) for name, scores in scored.items()}
        return [
            self._sum({name: scored[name][index] for name in self._terms if sample.prompt_token_ids in applies[name]})
            for index, sample in enumerate(samples)
        ]

    def _sum(self, scores: Mapping[str, Score]) -> Score:
        """``scores`` are those of the rewards that apply to one answer; none at all leaves it out."""
        errors = [f"{name}: {score.error}" for name, score in scores.items() if score.error is not None]
        if errors:
            return Score(error=f"reward.parts.{'; '.join(errors)}")
        parts = {name: score.value for name, score in scores.items() if score.value is not None}
        inner = {f"{name}/{part}": number for name, score in scores.items() for part, number in score.parts.items()}
        if not scores or len(parts) < len(scores):
            return Score(parts=parts | inner)
        total = sum(self._terms[name].weight * value for name, value in parts.items())
        if not math.isfinite(total):
            shown = ", ".join(f"{name} {value:g}" for name, value in parts.items())
            return Score(error=f"reward.parts: the weighted sum is not finite: {shown}")
        return Score(value=total, parts=parts | inner)


def _prompts_with_values(samples: Sequence[RewardSample], scores: Sequence[Score]) -> set[tuple[int, ...]]:
    """Prompts with an answer that was scored, or could not be by an error."""
    found: dict[tuple[int, ...], bool] = defaultdict(bool)
    for sample, score in zip(samples, scores, strict=True):
        found[sample.prompt_token_ids] |= score.value is not None or score.error is not None
    return {prompt for prompt, has_value in found.items() if has_value}
