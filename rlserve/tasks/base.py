"""The contract of a built-in task: problems with a checkable answer, and how a model for them is warm-started.

Imports no torch: the driver makes data and looks up models without it.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 8
"""One problem in so many is held out."""


def split_of(prompt: str) -> Split:
    """The split that a problem belongs to, by a hash of its prompt: no seed can put it into both."""
    return "held_out" if zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0 else "train"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One problem, a line of the JSONL file."""

    prompt: str
    answer: str
    """What the reward compares the final answer with."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One worked example that the model imitates in the warm start."""

    prompt: str
    response: str
    """Without the end-of-sequence token."""


class Sample(Protocol):
    """What a reward function is given: one finished answer to one prompt."""

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def response(self) -> str:
        """The answer's text, without special tokens."""
        ...

    @property
    def answer(self) -> str | None:
        """The reference answer, None where the data has none."""
        ...

    @property
    def finished(self) -> bool:
        """False where the answer was cut because it became too long."""
        ...


@dataclass(frozen=True, kw_only=True)
class WarmStartRecipe:
    """The model's shape (Qwen3) and its supervised training: a fixed number of steps, never a time."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    num_steps: int
    batch_size: int
    """Demonstrations per step, all of them new."""
    matrix_learning_rate: float
    """Peak, for the weight matrices of the layers (Muon)."""
    other_learning_rate: float
    """Peak, for the embedding and the norms (AdamW)."""
    easy_share: float
    """Share of the steps, at the beginning, on easy demonstrations alone, which are shorter."""
    num_warmup_steps: int
    decay_share: float
    """Share of the steps, at the end, over which the learning rates fall linearly to zero."""
    seed: int


class Task(ABC):
    """A family of problems. The same seed always gives the same records and demonstrations."""

    name: str
    """Users write ``builtin:NAME``."""
    alphabet: str
    """Every character of prompts and answers, once; each is one token."""
    recipe: WarmStartRecipe

    @abstractmethod
    def records(self, *, seed: int, split: Split, count: int) -> list[Record]:
        """``count`` different problems of a split. The two splits have no problem in common, whatever the seeds."""

    @abstractmethod
    def demonstrations(self, *, seed: int, easy: bool) -> Iterator[Demonstration]:
        """Worked examples without end, none of them of a held-out problem; only the easy ones if asked."""
