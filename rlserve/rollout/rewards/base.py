"""The contract of a reward, and what it is shown of an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlserve.rollout.columns import Columns
from rlserve.rollout.groups import Answer, Message

TRUNCATED = "truncated"
"""Part of a reward model's scores: 1 where the text was longer than the model takes and lost its beginning."""


@dataclass(frozen=True, kw_only=True)
class RewardSample:
    """One answer to score."""

    id: str
    """Names the prompt's group and the sample; errors quote it."""
    prompt: str
    """As the data set has it; of a conversation, what the user said last."""
    response: str
    answer: Answer
    """Reference answer of the data set: text (a number as the file spells it), a list or a dict; None where it has
    none."""
    finished: bool
    """False where the response was cut off by its length."""
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    prompt_rendered: str = ""
    """The text that the model was given, chat template included; ``prompt_rendered + response`` is what it read and
    wrote."""
    messages: tuple[Message, ...] | None = None
    """The conversation that the chat template rendered, system prompt included; None without a template."""
    row: Columns = field(default_factory=Columns)
    """All columns of the row, read only."""
    turns: tuple[str, ...] = ()
    """What the model said turn by turn, in a conversation with an environment; else empty. ``response`` has all of it
    and what the environment said."""
    environment_reward: float = 0.0
    """Sum of the environment's rewards, which is added to that of this sample; 0 without an environment."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a reward made of one answer: a value, or a wish to leave the answer out, or an error."""

    value: float | None = None
    """The reward, finite. None leaves the answer out, and with it the answers to the same prompt."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further finite numbers by name, for the metrics ``reward/NAME/mean``."""
    error: str | None = None
    """Why the answer could not be scored: names the reward, the sample and what happened."""


class Reward(ABC):
    """Scores answers. Made in the process that scores, by ``rlserve.rollout.rewards.factory.create_reward``."""

    @property
    def scores_at_once(self) -> bool:
        """Whether several samples take about as long as one, since they are scored side by side."""
        return False

    @abstractmethod
    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """One score for each sample, in the same order. One sample's failure is no other's: it becomes an error."""
