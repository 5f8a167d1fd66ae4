"""Samples laid end to end, so that what several begin with is there once: the answers to a prompt share its rows.

    tokens     a b c d          order     a b c d        rows     a b c d x y z
               z                          a b x y                 └───────┘ segment 0
               a b x y                    z                               └─┘ segment 1, after row 1
                                                                              └ segment 2, another tree

Legend: B samples of the batch, S samples of a shard or a pass, T rows of a pass, a trained response tokens of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    texts = [text.astype(">i4").tobytes() for text in _texts(batch, samples)]  # compared as bytes, as numbers are
    ordered = samples[sorted(range(len(samples)), key=texts.__getitem__)]
    return ordered, _num_shared(_texts(batch, ordered))


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
    texts = _texts(batch, samples)
    response_starts = np.cumsum(batch.response_lengths, dtype=np.int64) - batch.response_lengths
    longest = max(map(len, texts)) - (not states_after)
    rows_of_path, segment_of_path = np.zeros((2, longest), dtype=np.int64)
    input_ids, positions, states, targets = [], [], [], []
    parents: list[int] = []
    segments, trees, length_of_path = [0], [], 0
    for text, num_alike, sample in zip(texts, num_shared.tolist(), samples.tolist(), strict=True):
        num_inputs = len(text) - (not states_after)
        first = min(num_alike, num_inputs, length_of_path)
        length_of_path = num_inputs
        if first < num_inputs:
            if first == 0:
                trees.append(len(parents))
            parents.append(segment_of_path[first - 1] if first else -1)
            segment_of_path[first:num_inputs] = len(parents) - 1
            rows_of_path[first:num_inputs] = np.arange(segments[-1], segments[-1] + num_inputs - first)
            segments.append(segments[-1] + num_inputs - first)
            input_ids.append(text[first:num_inputs])
            positions.append(np.arange(first, num_inputs, dtype=np.int32))
        prompt, response = int(batch.prompt_lengths[sample]), int(batch.response_lengths[sample])
        is_trained = batch.loss_mask[response_starts[sample] : response_starts[sample] + response]
        states.append(rows_of_path[num_inputs - response : num_inputs][is_trained])
        targets.append(text[prompt:][is_trained])
    trees.append(len(parents))
    return PackedInputs(
        input_ids=torch.from_numpy(np.concatenate(input_ids).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate(positions)),
        segments=torch.tensor(segments, dtype=torch.int32),
        parents=torch.tensor(parents, dtype=torch.int32),
        trees=torch.tensor(trees, dtype=torch.int32),
        states=torch.from_numpy(np.concatenate(states)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        longest=longest,
    )


def _num_shared(texts: Sequence[NDArray[np.int32]]) -> IndexArray:
    """Of each of some samples' tokens how many are those of the sample before it: 0, or at least ``LEAST_SHARED``."""
    found = np.zeros(len(texts), dtype=np.int64)
    for index in range(1, len(texts)):
        one, other = texts[index - 1], texts[index]
        length = min(len(one), len(other))
        differs = one[:length] != other[:length]
        first = int(differs.argmax())
        shared = first if differs[first] else length
        found[index] = shared if shared >= LEAST_SHARED else 0
    return found


def _texts(batch: Batch, samples: IndexArray) -> list[NDArray[np.int32]]:
    """The tokens of each."""
    lengths = (batch.prompt_lengths + batch.response_lengths).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    return [
        batch.token_ids[start : start + length] for start, length in zip(starts[samples], lengths[samples], strict=True)
    ]
