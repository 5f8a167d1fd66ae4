"""Prompt groups as plain data: one prompt with its samples, before and after generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.requests.request import RequestOutput, SampleOutput
from rlserve.rollout.columns import Columns

Answer = str | list[Any] | dict[str, Any] | None
"""A reference answer: text, or plain data as in JSON."""
Message = dict[str, Any]
"""One turn of a conversation: ``role``, ``content``, and what else the chat template looks at."""


@dataclass(frozen=True, kw_only=True)
class PromptGroup:
    """One prompt of the data set, to be answered ``samples_per_prompt`` times."""

    id: str
    """``"{epoch}:{row}"``, handed out once in a run."""
    position: int
    """How many prompts the source handed out before this one; the ledger admits them without a gap."""
    row: int
    """Row of the data set, counted from 0."""
    prompt_text: str
    """As the data set has it, before any chat template; of a conversation, what the user said last."""
    prompt_token_ids: tuple[int, ...]
    answer: Answer
    """Reference answer for the reward."""
    prompt_rendered: str = ""
    """The text whose tokens ``prompt_token_ids`` are."""
    messages: tuple[Message, ...] | None = None
    """What the chat template rendered; None without a template."""
    columns: Columns = field(default_factory=Columns)
    """The whole row, for the reward."""
    drop_reason: str | None = None
    """Why the prompt cannot be used; it is admitted and dropped at once, so that counts match the position."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversation:
    """How a sample of several turns came about. R tokens of model and environment."""

    loss_mask: NDArray[np.bool_]
    """[R] which tokens the model made; the others are the environment's."""
    num_turns: int
    """Of the model."""
    turn_rewards: tuple[float, ...]
    """Of the environment, after each turn."""
    metrics: Mapping[str, float]
    """Sums of its further numbers by name."""
    environment_s: float
    """Seconds that the environment took."""

    @property
    def reward(self) -> float:
        """Sum of the environment's rewards."""
        return sum(self.turn_rewards)

    def turn_spans(self) -> list[tuple[int, int]]:
        """Tokens [start, end) of each turn of the model."""
        edges = np.flatnonzero(np.diff(self.loss_mask, prepend=False, append=False))
        return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedGroup:
    """A prompt group that was generated."""

    group: PromptGroup
    output: RequestOutput
    conversations: tuple[Conversation, ...] = ()
    """One for each sample of ``output``; empty without an environment."""

    @property
    def num_generated_tokens(self) -> int:
        """Those that the model made."""
        if self.conversations:
            return sum(int(conversation.loss_mask.sum()) for conversation in self.conversations)
        return sum(len(sample.tokens) for sample in self.output.samples)


@dataclass(frozen=True, kw_only=True)
class GreedyAnswer:
    """What remains of the greedy answer to a prompt, which is scored and not trained on."""

    reward: float
    num_tokens: int
    """That the model made."""
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """A prompt group that was generated and scored."""

    group: PromptGroup
    output: RequestOutput
    conversations: tuple[Conversation, ...] = ()
    """One for each sample of ``output``; empty without an environment."""
    rewards: tuple[float, ...]
    """One for each sample of ``output``, in the same order."""
    reward_parts: tuple[Mapping[str, float], ...] = ()
    """Further numbers of the reward for each sample, by name; empty where the reward gives a number alone."""
    greedy: GreedyAnswer | None = None
    """One more answer to the prompt, where the algorithm compares with it; not in ``output``."""
    attempt: int
    """How often the group had to start over before this output."""

    def __post_init__(self) -> None:
        assert len(self.rewards) == len(self.output.samples) > 0, f"group {self.group.id}: one reward a sample"
        assert len(self.conversations) in (0, len(self.rewards)), f"group {self.group.id}: one conversation a sample"
        assert self.output.finished, f"group {self.group.id}: only finished groups are scored"

    @property
    def num_generated_tokens(self) -> int:
        """Those that the model made, also for the greedy answer."""
        generated = GeneratedGroup(group=self.group, output=self.output, conversations=self.conversations)
        return generated.num_generated_tokens + (0 if self.greedy is None else self.greedy.num_tokens)

    @property
    def compared_rewards(self) -> tuple[float, ...]:
        """Where all of these are equal, no answer is better than what it is compared with."""
        return self.rewards if self.greedy is None else (*self.rewards, self.greedy.reward)

    @cached_property
    def oldest_version(self) -> int:
        """Version of the weights that made the oldest token."""
        return min(int(sample.tokens.weight_versions.min()) for sample in self.output.samples if len(sample.tokens))


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """A single answer with what the reward made of it."""

    prompt: PromptGroup
    sample: SampleOutput
    reward: float | None
    """None: it could not be scored, or was left out."""
    reward_parts: Mapping[str, float]


def mean_reward_parts(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Metrics ``reward/NAME/mean``: mean over the samples that have the part."""
    values: dict[str, list[float]] = {}
    for group in groups:
        for parts in group.reward_parts:
            for name, value in parts.items():
                values.setdefault(name, []).append(value)
    return {f"reward/{name}/mean": fmean(numbers) for name, numbers in values.items()}
