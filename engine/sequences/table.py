"""The running samples as a table: one row each, so that a step works on arrays and not on objects.

Legend: S rows, L longest sequence in tokens, K most stop tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.adapters.adapter import NO_ADAPTER_ID
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.sequences.random_streams import seed_of, stream_key, stream_keys
from rlserve.engine.sequences.sequence import Sequence
from rlserve.engine.stats.metrics import NO_TIME

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: logits divided by less overflow."""
SMALLEST_TOP_P = float(np.finfo(np.float32).tiny)
"""Less would be 0 to the kernels, and no token would be kept."""


class SequenceTable:
    """Owner of the rows. Columns are read by the runner and written here and by the engine."""

    def __init__(self, *, num_rows: int, max_model_len: int, block_size: int) -> None:
        shape = (num_rows, max_model_len)
        self.token_ids = np.zeros(shape, dtype=np.int32)
        """[S, L] prompt, then generated tokens."""
        self.log_probs = np.zeros(shape, dtype=np.float32)
        """[S, L] of generated tokens, at their position in the sequence; so are the next two."""
        self.behaviour_log_probs = np.zeros(shape, dtype=np.float32)
        self.weight_versions = np.zeros(shape, dtype=np.int64)
        self.block_tables = np.zeros((num_rows, -(-max_model_len // block_size)), dtype=np.int32)
        self.num_tokens = np.zeros(num_rows, dtype=np.int32)
        """[S] those that the device is still drawing included."""
        self.num_known = np.zeros(num_rows, dtype=np.int32)
        """[S] tokens that stand in the table; less than ``num_tokens`` between ``reserve`` and ``fill``."""
        self.num_departures = 0
        """How often a sequence has left its row."""
        self.last_departure = np.zeros(num_rows, dtype=np.int64)
        """[S] which of these was the last from the row: what is drawn for one sequence must not reach another."""
        self.num_prompt_tokens = np.zeros(num_rows, dtype=np.int32)
        self.max_num_tokens = np.zeros(num_rows, dtype=np.int32)
        """[S] where the sample ends by length, prompt included."""
        self.decoding = np.zeros(num_rows, dtype=np.bool_)
        """[S] the KV of all tokens but the last is computed: one token a step."""
        self.temperature = np.zeros(num_rows, dtype=np.float32)
        self.top_k = np.zeros(num_rows, dtype=np.int32)
        self.top_p = np.zeros(num_rows, dtype=np.float32)
        self.min_p = np.zeros(num_rows, dtype=np.float32)
        self.is_special = np.zeros(num_rows, dtype=np.bool_)
        """[S] asks the sampler for more than the columns above."""
        self.adapter_ids = np.full(num_rows, NO_ADAPTER_ID, dtype=np.int64)
        """[S] of those that the rows are computed with."""
        self.stream_keys = np.zeros(num_rows, dtype=np.uint64)
        self.stop_token_ids = np.full((num_rows, 1), -1, dtype=np.int32)
        """[S, K] filled up with -1, which is no token."""
        self.searches_text = np.zeros(num_rows, dtype=np.bool_)
        """[S] has stop strings."""
        self.last_token_s = np.full(num_rows, NO_TIME, dtype=np.float64)
        """[S] when the engine drew the last token."""
        self._sequences: list[Sequence | None] = [None] * num_rows
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Rows without a sequence."""
        return len(self._free)

    def has_sequence(self, row: int) -> bool:
        """Whether somebody has the row."""
        return self._sequences[row] is not None

    def sequence(self, row: int) -> Sequence:
        """Who has the row."""
        sequence = self._sequences[row]
        assert sequence is not None, f"row {row} is free"
        return sequence

    def decode_rows(self) -> NDArray[np.intp]:
        """The rows that compute one token in the next step: a sample as long as it may be only waits to be read."""
        return np.flatnonzero(self.decoding & (self.num_tokens < self.max_num_tokens))

    def needs_tokens(self) -> bool:
        """Whether a row decodes whose next draw may depend on the values of all tokens before it."""
        return bool(self.is_special[self.decode_rows()].any())

    def running(self) -> list[Sequence]:
        """All sequences that have a row."""
        return [sequence for sequence in self._sequences if sequence is not None]

    def take(self, sequence: Sequence, eos_token_ids: tuple[int, ...]) -> None:
        """Give the sequence a row, filled with its tokens. There must be a free one."""
        row = self._free.pop()
        sequence.row = row
        self._sequences[row] = sequence
        prompt, history, sampling = sequence.owner.prompt, sequence.history, sequence.owner.request.sampling
        num_prompt, num_tokens = len(prompt), sequence.num_tokens
        self.token_ids[row, :num_prompt] = prompt
        generated = slice(num_prompt, num_tokens)
        self.token_ids[row, generated] = history.token_ids
        self.log_probs[row, generated] = history.log_probs
        self.behaviour_log_probs[row, generated] = history.behaviour_log_probs
        self.weight_versions[row, generated] = history.weight_versions
        self.num_tokens[row] = self.num_known[row] = num_tokens
        self.num_prompt_tokens[row] = num_prompt
        self.max_num_tokens[row] = min(num_prompt + sampling.max_tokens_of(sequence.index), self.token_ids.shape[1])
        self.last_token_s[row] = sequence.last_token_s
        self.decoding[row] = False
        self.temperature[row] = _temperature(sequence)
        self.top_k[row] = max(sampling.top_k, 0)
        self.top_p[row] = max(sampling.top_p, SMALLEST_TOP_P)
        self.min_p[row] = sampling.min_p
        self.is_special[row] = sampling.is_special
        self.adapter_ids[row] = sequence.owner.adapter_id
        self.stream_keys[row] = stream_key(_seed(sequence), sequence.index)
        self._set_stop_tokens(row, (*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)))
        self.searches_text[row] = sequence.stop_checker is not None
        self.block_tables[row, : len(sequence.blocks)] = sequence.blocks

    def take_as(self, leader_of: Mapping[Sequence, Sequence]) -> None:
        """Give samples that have no tokens yet a row each, in which they go on from the prompt that their leader has
        just computed, in its blocks. There must be as many free ones.

        Args:
            leader_of: the leaders of the samples.
        """
        if not leader_of:
            return
        rows = np.array([self._free.pop() for _ in leader_of])
        first = np.array([leader.row for leader in leader_of.values()])
        for row, follower in zip(rows.tolist(), leader_of, strict=True):
            follower.row = row
            self._sequences[row] = follower
        for column in self._columns_of_request():
            column[rows] = column[first]
        num_prompt = self.num_prompt_tokens[first]
        longest = int(num_prompt.max())
        self.token_ids[rows, :longest] = self.token_ids[first, :longest]
        num_blocks = max(len(leader.blocks) for leader in leader_of.values())
        self.block_tables[rows, :num_blocks] = self.block_tables[first, :num_blocks]
        num_generated = [each.owner.request.sampling.max_tokens_of(each.index) for each in leader_of]
        self.max_num_tokens[rows] = np.minimum(num_prompt + np.array(num_generated), self.token_ids.shape[1])
        if any(leader.owner.request.sampling.num_greedy for leader in set(leader_of.values())):
            self.temperature[rows] = [_temperature(follower) for follower in leader_of]
        self.last_token_s[rows] = [follower.last_token_s for follower in leader_of]
        seeds = [_seed(follower) % 2**64 for follower in leader_of]
        indices = [follower.index for follower in leader_of]
        self.stream_keys[rows] = stream_keys(np.array(seeds, dtype=np.uint64), np.array(indices, dtype=np.uint64))
        self.decoding[rows] = True

    def give_back(self, sequences: Collection[Sequence]) -> None:
        """Free the rows; the generated tokens move to the sequences' histories, without those still being drawn."""
        if not sequences:
            return
        rows = np.array([sequence.row for sequence in sequences])
        histories = self._histories(rows)
        self.last_departure[rows] = np.arange(self.num_departures, self.num_departures + len(rows)) + 1
        self.num_departures += len(rows)
        self.decoding[rows] = False
        last_tokens_s = self.last_token_s[rows].tolist()
        for sequence, history, last_token_s in zip(sequences, histories, last_tokens_s, strict=True):
            sequence.history, sequence.last_token_s = history, last_token_s
            self._sequences[sequence.row] = None
            self._free.append(sequence.row)
            sequence.row = -1

    def generated(self, row: int) -> NDArray[np.int32]:
        """A view of the generated tokens of a row."""
        return self.token_ids[row, self.num_prompt_tokens[row] : self.num_tokens[row]]

    def history(self, row: int, start: int = 0) -> GeneratedTokens:
        """A copy of the generated tokens of a row that are known, without the first ``start``."""
        generated = slice(int(self.num_prompt_tokens[row]) + start, int(self.num_known[row]))
        return GeneratedTokens(
            token_ids=self.token_ids[row, generated].copy(),
            log_probs=self.log_probs[row, generated].copy(),
            behaviour_log_probs=self.behaviour_log_probs[row, generated].copy(),
            weight_versions=self.weight_versions[row, generated].copy(),
        )

    def _histories(self, rows: NDArray[np.intp]) -> Iterator[GeneratedTokens]:
        """Of each row what :meth:`history` gives, as a part of arrays that all of them share."""
        starts = self.num_prompt_tokens[rows]
        lengths = self.num_known[rows] - starts
        ends = np.cumsum(lengths)
        of_row = np.repeat(rows, lengths)
        positions = np.arange(len(of_row)) + np.repeat(starts - ends + lengths, lengths)
        columns = (self.token_ids, self.log_probs, self.behaviour_log_probs, self.weight_versions)
        token_ids, log_probs, behaviour_log_probs, weight_versions = (column[of_row, positions] for column in columns)
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
            generated = slice(end - length, end)
            yield GeneratedTokens(
                token_ids=token_ids[generated],
                log_probs=log_probs[generated],
                behaviour_log_probs=behaviour_log_probs[generated],
                weight_versions=weight_versions[generated],
            )

    def reserve(self, rows_B: NDArray[np.intp], weight_version: int) -> NDArray[np.int32]:
        """Add one generated token to each of the given rows, which ``fill`` will tell; returns their positions."""
        positions_B = self.num_tokens[rows_B]
        self.weight_versions[rows_B, positions_B] = weight_version
        self.num_tokens[rows_B] = positions_B + 1
        return positions_B

    def fill(
        self,
        rows_B: NDArray[np.intp],
        positions_B: NDArray[np.int32],
        token_ids_B: NDArray[np.int32],
        log_probs_B: NDArray[np.float32],
        behaviour_log_probs_B: NDArray[np.float32],
    ) -> None:
        """Write the tokens reserved at the given positions, in the order in which they were reserved."""
        self.token_ids[rows_B, positions_B] = token_ids_B
        self.log_probs[rows_B, positions_B] = log_probs_B
        self.behaviour_log_probs[rows_B, positions_B] = behaviour_log_probs_B
        self.num_known[rows_B] = positions_B + 1

    def _columns_of_request(self) -> tuple[NDArray[Any], ...]:
        """Those that are alike for all samples of a request that have computed its prompt and nothing else."""
        return (
            self.num_tokens,
            self.num_known,
            self.num_prompt_tokens,
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.is_special,
            self.adapter_ids,
            self.searches_text,
            self.stop_token_ids,
        )

    def _set_stop_tokens(self, row: int, token_ids: tuple[int, ...]) -> None:
        num_rows = len(self._sequences)
        if self.num_free == num_rows - 1:  # the only one: all steps compare as many as the widest row has had
            self.stop_token_ids = np.full((num_rows, 1), -1, dtype=np.int32)
        missing = len(token_ids) - self.stop_token_ids.shape[1]
        if missing > 0:
            self.stop_token_ids = np.pad(self.stop_token_ids, ((0, 0), (0, missing)), constant_values=-1)
        self.stop_token_ids[row] = -1
        self.stop_token_ids[row, : len(token_ids)] = token_ids


def _temperature(sequence: Sequence) -> float:
    """Of its draws; 0 where it is greedy."""
    temperature = sequence.owner.request.sampling.temperature_of(sequence.index)
    return temperature if temperature >= GREEDY_BELOW else 0.0


def _seed(sequence: Sequence) -> int:
    request = sequence.owner.request
    return seed_of(request.id) if request.sampling.seed is None else request.sampling.seed
