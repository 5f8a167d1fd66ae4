"""Log-probabilities of given tokens, between two steps and beside the requests.

The tokens are computed as prompts, in KV blocks that no request ever has. So nothing of the requests is touched: no
row, no block, no cached prefix, no count; and there is room whatever they hold.

Legend: S sequences of a step, T their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.config import EngineConfig
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.engine.sequences.prompt_scores import PromptScores
from rlserve.errors import UserError


class SequenceScorer:
    """Scores with the weights that the runner has."""

    def __init__(self, runner: ModelRunner, config: EngineConfig, vocab_size: int) -> None:
        """``vocab_size`` is that of the whole model, of which the runner may have a part."""
        self._runner = runner
        self._vocab_size = vocab_size
        self._block_size = config.block_size
        self._max_num_tokens = config.max_num_batched_tokens
        self._max_num_sequences = min(config.max_num_sequences, config.max_num_batched_tokens)
        room = len(runner.scoring_blocks) * config.block_size
        self._longest = min(room, config.max_num_batched_tokens, runner.max_model_len)

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        """See ``Engine.score``; the weights are loaded, and the KV cache is there."""
        for tokens in sequences:
            if not 2 <= len(tokens) <= self._longest:
                raise UserError(f"a sequence to score must have 2 to {self._longest} tokens, got {len(tokens)}")
            if not all(0 <= token < self._vocab_size for token in tokens):
                raise UserError(f"a sequence to score must have tokens below {self._vocab_size}, got {list(tokens)}")
        return tuple(log_probs for step in self._steps(sequences) for log_probs in self._computed(step))

    def _steps(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """The sequences in order, as many at a time as have room."""
        step: list[Sequence[int]] = []
        for tokens in sequences:
            if step and not self._has_room([*step, tokens]):
                yield step
                step = []
            step.append(tokens)
        if step:
            yield step

    def _has_room(self, step: Sequence[Sequence[int]]) -> bool:
        num_blocks = sum(-(-len(tokens) // self._block_size) for tokens in step)
        num_tokens = sum(len(tokens) for tokens in step)
        return (
            num_blocks <= len(self._runner.scoring_blocks)
            and num_tokens <= self._max_num_tokens
            and len(step) <= self._max_num_sequences
        )

    def _computed(self, step: Sequence[Sequence[int]]) -> Iterator[tuple[float, ...]]:
        layout = self._layout(step)
        self._runner.forward(layout, np.array([layout.num_tokens - 1]), {})
        for tokens, first in zip(step, layout.query_starts.tolist(), strict=False):
            scores = PromptScores(np.array(tokens, dtype=np.int32), 0)
            self._runner.score_prompt(scores, 0, first, len(tokens))
            yield tuple(log_prob for log_prob in scores.result()[0] if log_prob is not None)

    def _layout(self, step: Sequence[Sequence[int]]) -> StepLayout:
        lengths = np.array([len(tokens) for tokens in step], dtype=np.int32)
        num_blocks_S = -(-lengths // self._block_size)
        block_tables = np.zeros((len(step), int(num_blocks_S.max())), dtype=np.int32)
        first_block = self._runner.scoring_blocks.start
        for row, num_blocks in enumerate(num_blocks_S):
            block_tables[row, :num_blocks] = np.arange(first_block, first_block + num_blocks)
            first_block += int(num_blocks)
        positions_T = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        blocks_T = block_tables[np.repeat(np.arange(len(step)), lengths), positions_T // self._block_size]
        query_starts = np.zeros(len(step) + 1, dtype=np.int32)
        np.cumsum(lengths, out=query_starts[1:])
        return StepLayout(
            token_ids=np.concatenate([np.array(tokens, dtype=np.int64) for tokens in step]),
            positions=positions_T,
            cache_slots=blocks_T.astype(np.int64) * self._block_size + positions_T % self._block_size,
            query_starts=query_starts,
            table_rows=np.arange(len(step), dtype=np.int32),
            block_tables=block_tables,
        )
