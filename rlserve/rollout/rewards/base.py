"""The contract of a reward, and what it is shown of an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlserve.rollout.columns import Columns
from rlserve.rollout.groups import Answer, Message


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


class Reward(ABC):
    """Scores answers. Made in the process that scores, by ``rlserve.rollout.rewards.factory.create_reward``."""

    @abstractmethod
    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """One finite number for each sample, in the same order.

        Raises:
            RewardError: a sample cannot be scored; names the reward, the prompt's id and what happened.
        """
