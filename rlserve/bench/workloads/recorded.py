"""Workloads from files: prompts that are asked as they stand, and recorded traces.

A line of prompts has ``prompt`` (text or token ids) or ``messages``, and may have ``max_tokens`` or ``output_tokens``.

A line of a trace has ``timestamp`` in milliseconds, as Mooncake's traces do, and either of the above, or
``input_length`` and ``output_length`` in tokens. With ``hash_ids`` besides, prompts share what they shared when they
were recorded: each id is a block of 512 tokens that is the same wherever the id stands.
"""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from rlserve.bench.lengths import Lengths
from rlserve.bench.prompts.base import Prompt, PromptWriter, joined
from rlserve.bench.workloads.base import Conversation, Turn, Workload
from rlserve.bench.workloads.json_lines import Row, read_rows

BLOCK_TOKENS = 512
"""That an element of ``hash_ids`` stands for."""


@dataclass(frozen=True, kw_only=True)
class _FileWorkload(Workload):
    rows: Sequence[Row]
    output_tokens: Lengths
    """Of the answer to a row that does not say it."""
    seed: int

    @property
    def num_conversations(self) -> int:
        return len(self.rows)

    @property
    def has_messages(self) -> bool:
        return any("messages" in row.fields for row in self.rows)

    @abstractmethod
    def conversation(self, index: int) -> Conversation:
        """That of a row, and from the first again."""


@dataclass(frozen=True, kw_only=True)
class PromptFileWorkload(_FileWorkload):
    """Prompts as they stand in a file. Answers end where the model ends them, unless ``ignores_end``."""

    ignores_end: bool

    def conversation(self, index: int) -> Conversation:
        """One turn."""
        row = self.rows[index % len(self.rows)]
        return Conversation(turns=(_said(row, self._max_tokens(row, index), ignores_end=self.ignores_end),))

    def _max_tokens(self, row: Row, index: int) -> int:
        said = row.whole_number("max_tokens", "output_tokens")
        return self.output_tokens.draw(random.Random(f"{self.seed} {index}")) if said is None else said


@dataclass(frozen=True, kw_only=True)
class TraceWorkload(_FileWorkload):
    """Requests at the times that they were recorded at, ``speed`` times as fast."""

    writer: PromptWriter
    ignores_end: bool
    speed: float
    starts_s: tuple[float, ...]
    """By row, from the first."""

    def conversation(self, index: int) -> Conversation:
        """One turn. Rounds of the trace follow one another, with the mean gap between them."""
        number, position = divmod(index, len(self.rows))
        row, length_s = self.rows[position], self.starts_s[-1]
        round_s = length_s + length_s / max(len(self.rows) - 1, 1)
        return Conversation(
            turns=(self._turn(row, index),), arrival_s=(number * round_s + self.starts_s[position]) / self.speed
        )

    def _turn(self, row: Row, index: int) -> Turn:
        rng = random.Random(f"{self.seed} {index}")
        said = row.whole_number("max_tokens", "output_length", "output_tokens")
        max_tokens = self.output_tokens.draw(rng) if said is None else said
        num_tokens = row.whole_number("input_length", "input_tokens")
        if num_tokens is None:
            return _said(row, max_tokens, ignores_end=self.ignores_end)
        prompt = self._written(row, num_tokens, rng)
        return Turn(prompt=prompt, max_tokens=max_tokens, ignores_end=self.ignores_end)

    def _written(self, row: Row, num_tokens: int, rng: random.Random) -> Prompt:
        """Blocks that stand in the row first, then what no other prompt has."""
        parts: list[Prompt] = []
        for block in row.fields.get("hash_ids", ())[: math.ceil(num_tokens / BLOCK_TOKENS)]:
            size = min(BLOCK_TOKENS, num_tokens - BLOCK_TOKENS * len(parts))
            parts.append(self.writer.write(size, random.Random(f"{self.seed} block {block}")))
        if (missing := num_tokens - BLOCK_TOKENS * len(parts)) > 0:
            parts.append(self.writer.write(missing, rng))
        return reduce(joined, parts)


def _said(row: Row, max_tokens: int, *, ignores_end: bool) -> Turn:
    prompt, messages = row.prompt(), row.messages()
    if (prompt is None) == (not messages):
        raise row.error("must have either prompt or messages")
    return Turn(prompt=prompt or "", messages=messages, max_tokens=max_tokens, ignores_end=ignores_end)


def read_prompt_file(path: Path, *, output_tokens: Lengths, ignores_end: bool, seed: int) -> PromptFileWorkload:
    """Prompts of a file, every line of which is checked.

    Raises:
        DataError: a line is none.
    """
    rows = read_rows(path)
    workload = PromptFileWorkload(rows=rows, output_tokens=output_tokens, ignores_end=ignores_end, seed=seed)
    for index in range(len(rows)):
        workload.conversation(index)
    return workload


def read_trace_file(
    path: Path, *, writer: PromptWriter, output_tokens: Lengths, ignores_end: bool, speed: float, seed: int
) -> TraceWorkload:
    """A trace whose lines have been checked.

    Raises:
        DataError: a line is none, or is earlier than the one before it.
    """
    rows = read_rows(path)
    starts_s: list[float] = []
    for row in rows:
        start_s = row.milliseconds("timestamp") / 1000
        if starts_s and start_s < starts_s[-1]:
            raise row.error("timestamp is earlier than that of the line before")
        if row.whole_number("input_length", "input_tokens") is None:
            _said(row, 1, ignores_end=False)
        elif not isinstance(row.fields.get("hash_ids", []), list):
            raise row.error("hash_ids must be a list")
        row.whole_number("max_tokens", "output_length", "output_tokens")
        starts_s.append(start_s)
    return TraceWorkload(
        rows=rows,
        output_tokens=output_tokens,
        seed=seed,
        writer=writer,
        ignores_end=ignores_end,
        speed=speed,
        starts_s=tuple(start_s - starts_s[0] for start_s in starts_s),
    )
