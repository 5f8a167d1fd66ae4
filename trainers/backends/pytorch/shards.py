"""Cutting a mini-batch into logical shards and passes, and padding a pass for the model.

Legend: B samples of the batch, S samples of a shard or a pass, L longest input, A response tokens of the batch,
a trained response tokens of a shard or a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.pytorch.packed.prefixes import PackedInputs, in_order_of_prefixes, num_rows, runs_of_rows
from rlserve.trainers.batch import Batch

IndexArray = NDArray[np.int64]

PASS_COST_TOKENS = 256
"""What one more pass costs, in tokens: so much padding is better computed than cut off."""
LEAST_SHARD_ROWS = 1024
"""Tokens that a packed shard has at least, if that leaves ``FEW_SHARDS``: what comes with every shard costs as much as
some hundreds of them."""
FEW_SHARDS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class LogicalShard:
    """Samples whose gradients one rank adds up, whichever it is; also a pass, the part of a shard that goes through
    the model at once."""

    samples: IndexArray
    """[S] indices into the batch's samples."""
    tokens: IndexArray
    """[a] where the samples' trained tokens stand in the batch's per-token arrays, sample by sample."""
    num_shared: IndexArray
    """[S] tokens at the beginning of each that it shares with the one before it, and that are computed once; 0 where
    samples are padded."""


@dataclass(frozen=True, kw_only=True)
class ShardInputs:
    """A pass as the model takes it. Padding is on the right, so under causal attention no real token sees it."""

    input_ids: Tensor
    """[S, L] int64: prompt and response, without the last token where no state needs it."""
    states: Tensor
    """[a] int64: index into [S * L] of the state that predicts each trained token (or follows it)."""
    targets: Tensor
    """[a] int64: the trained tokens."""


PassInputs = ShardInputs | PackedInputs
"""A pass as some decoder takes it."""


def cut_into_shards(batch: Batch, samples: IndexArray, num_shards: int) -> tuple[LogicalShard, ...]:
    """Cut samples into at most ``num_shards`` shards, none empty, of like length inside and like cost between.

    A pure function of the lengths: the samples are sorted by length, and a new shard begins wherever the tokens
    so far pass the next ``1 / num_shards`` of all.
    """
    lengths = _lengths(batch)
    ordered = samples[np.argsort(lengths[samples], kind="stable")]
    return tuple(_shard(batch, ordered[where]) for where in _slices_of_like_cost(lengths[ordered], num_shards))


def cut_into_packed_shards(batch: Batch, samples: IndexArray, num_shards: int) -> tuple[LogicalShard, ...]:
    """As ``cut_into_shards``, of samples that are packed: those that begin alike stay together, and a shard's cost is
    in tokens that no sample before shares. There are fewer shards where they would be small. A pure function of the
    samples' tokens."""
    ordered, num_shared = in_order_of_prefixes(batch, samples)
    costs = _lengths(batch)[ordered] - num_shared
    num_shards = min(num_shards, max(FEW_SHARDS, int(costs.sum()) // LEAST_SHARD_ROWS))
    return tuple(_part(batch, ordered, num_shared, where) for where in _slices_of_like_cost(costs, num_shards))


def cut_into_passes(batch: Batch, shard: LogicalShard, max_num_tokens: int) -> tuple[LogicalShard, ...]:
    """Cut a shard, whose samples are in order of their lengths, so that what is computed is least: all tokens with the
    padding of each pass, and ``PASS_COST_TOKENS`` for each. No pass has more than ``max_num_tokens`` with its padding,
    but a sample longer than that makes one by itself."""
    lengths = _lengths(batch)[shard.samples]
    num_samples = len(lengths)
    least = np.zeros(
        num_samples + 1, dtype=np.int64
    )  # to compute the samples before each, and where the last pass begins
    begins = np.zeros(num_samples + 1, dtype=np.int64)
    for end in range(1, num_samples + 1):
        longest = int(lengths[end - 1])
        earliest = max(0, end - max(1, max_num_tokens // longest))
        costs = least[earliest:end] + longest * np.arange(end - earliest, 0, -1) + PASS_COST_TOKENS
        best = int(costs.argmin())
        least[end], begins[end] = costs[best], earliest + best
    firsts, end = [], num_samples
    while end:
        end = int(begins[end])
        firsts.append(end)
    if len(firsts) == 1:
        return (shard,)
    return tuple(_shard(batch, samples) for samples in np.split(shard.samples, firsts[-2::-1]))


def cut_into_packed_passes(batch: Batch, shard: LogicalShard, max_num_tokens: int) -> tuple[LogicalShard, ...]:
    """As ``cut_into_passes``, of samples that are packed."""
    runs = list(runs_of_rows(_lengths(batch)[shard.samples], shard.num_shared, max_num_tokens))
    return tuple(_part(batch, shard.samples, shard.num_shared, where) for where in runs) if len(runs) > 1 else (shard,)


def num_packed_tokens(batch: Batch, part: LogicalShard) -> int:
    """Tokens that go through a network in one pass of packed samples."""
    return num_rows(_lengths(batch)[part.samples], part.num_shared)


def num_padded_tokens(batch: Batch, part: LogicalShard) -> int:
    """Tokens that go through a network in one pass, padding included."""
    return len(part.samples) * int((batch.prompt_lengths + batch.response_lengths)[part.samples].max())


def padding_share(batch: Batch, passes: Iterable[LogicalShard]) -> float:
    """Of all tokens of some passes, those that are padding."""
    passes = list(passes)
    num_tokens = sum(int((batch.prompt_lengths + batch.response_lengths)[part.samples].sum()) for part in passes)
    return 1.0 - num_tokens / sum(num_padded_tokens(batch, part) for part in passes)


def shard_inputs(batch: Batch, shard: LogicalShard, device: torch.device, *, states_after: bool = False) -> ShardInputs:
    """Pad the samples on the right and find the states that predict trained tokens; or, with ``states_after``, those
    that follow them."""
    starts, response_starts = _starts(batch.prompt_lengths + batch.response_lengths), _starts(batch.response_lengths)
    prompts, responses = batch.prompt_lengths[shard.samples], batch.response_lengths[shard.samples]
    longest = int((prompts + responses).max()) - (not states_after)
    input_ids = np.zeros((len(shard.samples), longest), dtype=np.int64)
    states, targets = [], []
    for row, (sample, prompt, response) in enumerate(zip(shard.samples, prompts, responses, strict=True)):
        tokens = batch.token_ids[starts[sample] : starts[sample] + prompt + response]
        num_inputs = len(tokens) - (not states_after)
        input_ids[row, :num_inputs] = tokens[:num_inputs]
        is_trained = batch.loss_mask[response_starts[sample] : response_starts[sample] + response]
        states.append((row * longest + np.arange(num_inputs - response, num_inputs))[is_trained])
        targets.append(tokens[prompt:][is_trained].astype(np.int64))
    return ShardInputs(
        input_ids=torch.from_numpy(input_ids).to(device),
        states=torch.from_numpy(np.concatenate(states)).to(device),
        targets=torch.from_numpy(np.concatenate(targets)).to(device),
    )


def _slices_of_like_cost(costs: IndexArray, num_parts: int) -> Iterator[slice]:
    """Samples of these costs in at most so many parts, none empty."""
    num_parts = min(num_parts, len(costs))
    costs_before = np.cumsum(costs) - costs
    shares = np.arange(1, num_parts) * int(costs.sum()) / num_parts
    cuts = np.searchsorted(costs_before, shares)
    # One long sample can swallow several shares: leave at least one sample to every part.
    earliest = np.arange(1, num_parts)
    latest = len(costs) - num_parts + earliest
    cuts = np.maximum.accumulate(np.maximum(cuts, 1) - earliest) + earliest if num_parts > 1 else cuts
    edges = [0, *np.minimum(cuts, latest).tolist(), len(costs)]
    return (slice(first, end) for first, end in pairwise(edges))


def _shard(batch: Batch, samples: IndexArray) -> LogicalShard:
    return LogicalShard(samples=samples, tokens=batch.tokens_of(samples), num_shared=np.zeros_like(samples))


def _part(batch: Batch, ordered: IndexArray, num_shared: IndexArray, where: slice) -> LogicalShard:
    """Of packed samples; the first of them shares nothing with one before it."""
    own_shared = num_shared[where].copy()
    own_shared[0] = 0
    return LogicalShard(samples=ordered[where], tokens=batch.tokens_of(ordered[where]), num_shared=own_shared)


def _lengths(batch: Batch) -> IndexArray:
    return (batch.prompt_lengths + batch.response_lengths).astype(np.int64)


def _starts(lengths: NDArray[np.int32]) -> IndexArray:
    """Where each of some ragged rows begins when they are laid end to end."""
    return np.cumsum(lengths, dtype=np.int64) - lengths
