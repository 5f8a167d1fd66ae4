"""Samples laid end to end, so that what several begin with is there once: the answers to a prompt share its rows.

    tokens     a b c d          order     a b c d        rows     a b c d x y z
               z                          a b x y                 └───────┘ segment 0
               a b x y                    z                               └─┘ segment 1, after row 1
                                                                              └ segment 2, another tree

Legend: B samples of the batch, S samples of a shard or a pass, T rows of a pass, a trained response tokens of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.batch import Batch

IndexArray = NDArray[np.int64]

LEAST_SHARED = 4
"""Tokens that samples must share to be in one tree: trees are computed beside each other."""


@dataclass(frozen=True, kw_only=True)
class PackedInputs:
    """A pass as a packed decoder takes it. A row is a token with all that is before it."""

    input_ids: Tensor
    """[T] int64"""
    positions: Tensor
    """[T] int32: tokens before it in its samples."""
    segments: Tensor
    """[segments + 1] int32: the first row of each, and T."""
    parents: Tensor
    """[segments] int32: the segment that has the row before its first, or -1."""
    trees: Tensor
    """[trees + 1] int32: the first segment of each, and how many there are."""
    states: Tensor
    """[a] int64: the row that predicts each trained token (or follows it), sample by sample."""
    targets: Tensor
    """[a] int64: the trained tokens."""
    longest: int
    """Rows of the longest sample."""


def in_order_of_prefixes(batch: Batch, samples: IndexArray) -> tuple[IndexArray, IndexArray]:
    """The samples so ordered that those that begin alike are neighbours, and of each how many tokens it shares with the
    one before it."""
    tokens = batch.token_ids.astype(">i4").tobytes()  # compared as bytes, as numbers are
    starts, lengths = _places(batch, samples)
    texts = [tokens[4 * start : 4 * (start + length)] for start, length in zip(starts, lengths, strict=True)]
    ordered = samples[sorted(range(len(samples)), key=texts.__getitem__)]
    return ordered, _num_shared(batch, ordered)


def num_rows(lengths: IndexArray, num_shared: IndexArray) -> int:
    """Tokens that go through a network for samples of these lengths."""
    return int(lengths.sum() - num_shared.sum())


def runs_of_rows(lengths: IndexArray, num_shared: IndexArray, max_num_rows: int) -> Iterator[slice]:
    """Samples of these lengths in parts of at most so many rows; one sample always fits."""
    first, total = 0, 0
    for index, length in enumerate(lengths.tolist()):
        own = length - int(num_shared[index])
        if index > first and total + own > max_num_rows:
            yield slice(first, index)
            first, total, own = index, 0, length
        total += own
    yield slice(first, len(lengths))


def pack(batch: Batch, samples: IndexArray, num_shared: IndexArray, *, states_after: bool = False) -> PackedInputs:
    """Lay the samples of a pass, in their order, end to end, and find the states that predict trained tokens; or, with
    ``states_after``, those that follow them.

    Args:
        num_shared: [S] tokens of each that it shares with the one before it: of the first none.
    """
    starts, lengths = _places(batch, samples)
    num_inputs = lengths - (not states_after)  # [S]
    first = np.minimum(num_shared, num_inputs)  # [S] own tokens of each begin here; before it are rows of others
    first[1:] = np.minimum(first[1:], num_inputs[:-1])
    num_own = num_inputs - first
    begins = np.cumsum(num_own) - num_own  # [S] the row of its first own token
    rows = _Rows(first=first, begins=begins)
    has_own = num_own > 0
    own_T, offset_T = _repeated(num_own)
    positions_T = first[own_T] + offset_T
    parents = np.full(len(samples), -1)
    hanging = np.flatnonzero(has_own & (first > 0))
    parents[hanging] = (np.cumsum(has_own) - 1)[rows.owners(hanging, first[hanging] - 1)]
    states, targets = _trained(batch, samples, starts, num_inputs, rows)
    return PackedInputs(
        input_ids=torch.from_numpy(batch.token_ids[starts[own_T] + positions_T].astype(np.int64)),
        positions=torch.from_numpy(positions_T.astype(np.int32)),
        segments=torch.from_numpy(np.append(begins[has_own], num_own.sum()).astype(np.int32)),
        parents=torch.from_numpy(parents[has_own].astype(np.int32)),
        trees=torch.from_numpy(np.append(np.flatnonzero(first[has_own] == 0), has_own.sum()).astype(np.int32)),
        states=torch.from_numpy(states),
        targets=torch.from_numpy(targets.astype(np.int64)),
        longest=int(num_inputs.max()),
    )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Where the tokens of the samples of a pass are."""

    first: IndexArray
    """[S] the tokens of each before this one are in rows of earlier samples."""
    begins: IndexArray
    """[S] the row of this one."""

    @cached_property
    def earlier(self) -> IndexArray:
        """[S] the last sample before each that has a token which this one finds in a row of others."""
        found, first = np.zeros(len(self.first), dtype=np.int64), self.first.tolist()
        nested: list[int] = []
        for sample, at in enumerate(first):
            while nested and first[nested[-1]] >= at:
                nested.pop()
            found[sample] = nested[-1] if nested else sample
            nested.append(sample)
        return found

    def owners(self, samples: IndexArray, positions: IndexArray) -> IndexArray:
        """The samples that have the rows of the tokens at these positions of these samples."""
        owners = samples.copy()
        while len(elsewhere := np.flatnonzero(positions < self.first[owners])):
            owners[elsewhere] = self.earlier[owners[elsewhere]]
        return owners

    def of(self, samples: IndexArray, positions: IndexArray) -> IndexArray:
        """The rows of the tokens at these positions of these samples."""
        owners = self.owners(samples, positions)
        rows: IndexArray = self.begins[owners] + positions - self.first[owners]
        return rows


def _trained(
    batch: Batch, samples: IndexArray, starts: IndexArray, num_inputs: IndexArray, rows: _Rows
) -> tuple[IndexArray, NDArray[np.int32]]:
    """Of each trained token the row of the state that belongs to it, and the token, sample by sample."""
    of_pass = batch.response_lengths[samples].astype(np.int64)
    sample, offset = _repeated(of_pass)
    is_trained = batch.loss_mask[batch.response_starts[samples][sample] + offset]
    sample, offset = sample[is_trained], offset[is_trained]
    states = rows.of(sample, (num_inputs - of_pass)[sample] + offset)
    return states, batch.token_ids[(starts + batch.prompt_lengths[samples])[sample] + offset]


def _num_shared(batch: Batch, samples: IndexArray) -> IndexArray:
    """Of each of some samples' tokens how many are those of the sample before it: 0, or at least ``LEAST_SHARED``."""
    starts, lengths = _places(batch, samples)
    found = np.zeros(len(samples), dtype=np.int64)
    if len(samples) > 1:
        compared = np.minimum(lengths[1:], lengths[:-1])
        pair, offset = _repeated(compared)
        differs = batch.token_ids[starts[1:][pair] + offset] != batch.token_ids[starts[:-1][pair] + offset]
        shared = np.minimum.reduceat(np.where(differs, offset, compared[pair]), np.cumsum(compared) - compared)
        found[1:] = np.where(shared >= LEAST_SHARED, shared, 0)
    return found


def _places(batch: Batch, samples: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Of each the first of its tokens among those of the batch, and how many it has: at least two."""
    lengths = (batch.prompt_lengths + batch.response_lengths).astype(np.int64)
    return (np.cumsum(lengths) - lengths)[samples], lengths[samples]


def _repeated(numbers: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Each index as often as its number says, and which time it is: [2, 1] gives [0, 0, 1] and [0, 1, 0]."""
    index = np.repeat(np.arange(len(numbers)), numbers)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
