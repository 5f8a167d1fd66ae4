"""Workloads drawn from distributions of lengths: random prompts, prompts with a shared prefix, conversations.

Every number and every word of the conversation at an index follow from (seed, index), prefixes from (seed, prefix).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlserve.bench.lengths import Lengths
from rlserve.bench.prompts.base import PromptWriter, joined
from rlserve.bench.workloads.base import Conversation, Turn, Workload


@dataclass(frozen=True, kw_only=True)
class RandomWorkload(Workload):
    """Prompts that have nothing in common."""

    writer: PromptWriter
    input_tokens: Lengths
    output_tokens: Lengths
    ignores_end: bool
    seed: int

    def conversation(self, index: int) -> Conversation:
        """One turn."""
        rng = random.Random(f"{self.seed} {index}")
        return Conversation(turns=(self._turn(rng),))

    def _turn(self, rng: random.Random, *, wait_s: float = 0.0) -> Turn:
        num_tokens = self.input_tokens.draw(rng)
        return Turn(
            prompt=self.writer.write(num_tokens, rng),
            max_tokens=self.output_tokens.draw(rng),
            ignores_end=self.ignores_end,
            wait_s=wait_s,
        )


@dataclass(frozen=True, kw_only=True)
class SharedPrefixWorkload(RandomWorkload):
    """Each prompt begins with one of a few prefixes; ``input_tokens`` is what follows it."""

    num_prefixes: int
    prefix_tokens: int

    def conversation(self, index: int) -> Conversation:
        """One turn, with a prefix drawn at random."""
        rng = random.Random(f"{self.seed} {index}")
        prefix_rng = random.Random(f"{self.seed} prefix {rng.randrange(self.num_prefixes)}")
        prefix = self.writer.write(self.prefix_tokens, prefix_rng)
        num_tokens = self.input_tokens.draw(rng)
        turn = Turn(
            prompt=joined(prefix, self.writer.write(num_tokens, rng)),
            max_tokens=self.output_tokens.draw(rng),
            ignores_end=self.ignores_end,
        )
        return Conversation(turns=(turn,))


@dataclass(frozen=True, kw_only=True)
class ConversationWorkload(RandomWorkload):
    """Several turns: each adds ``input_tokens`` to all that was said, and waits before it does."""

    num_turns: Lengths
    think_s: float

    def conversation(self, index: int) -> Conversation:
        """As many turns as drawn."""
        rng = random.Random(f"{self.seed} {index}")
        number = self.num_turns.draw(rng)
        return Conversation(
            turns=tuple(self._turn(rng, wait_s=self.think_s if turn else 0.0) for turn in range(number))
        )
