"""Cutting a mini-batch into logical shards and passes, and padding a pass for the model.

Legend: B samples of the batch, S samples of a shard or a pass, L longest input, A response tokens of the batch,
a trained response tokens of a shard or a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.batch import Batch

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LogicalShard:
    """Samples whose gradients one rank adds up, whichever it is; also a pass, the part of a shard that goes through
    the model at once."""

    samples: IndexArray
    """[S] indices into the batch's samples."""
    tokens: IndexArray
    """[a] where the samples' trained tokens stand in the batch's per-token arrays, sample by sample."""


@dataclass(frozen=True, kw_only=True)
class ShardInputs:
    """A pass as the model takes it. Padding is on the right, so under causal attention no real token sees it."""

    input_ids: Tensor
    """[S, L] int64: prompt and response, without the last token where no state needs it."""
    states: Tensor
    """[a] int64: index into [S * L] of the state that predicts each trained token (or follows it)."""
    targets: Tensor
    """[a] int64: the trained tokens."""


def cut_into_shards(batch: Batch, samples: IndexArray, num_shards: int) -> tuple[LogicalShard, ...]:
    """Cut samples into at most ``num_shards`` shards, none empty, of like length inside and like cost between.

    A pure function of the lengths: the samples are sorted by length, and a new shard begins wherever the tokens
    so far pass the next ``1 / num_shards`` of all.
    """
    num_shards = min(num_shards, len(samples))
    lengths = (batch.prompt_lengths + batch.response_lengths).astype(np.int64)
    ordered = samples[np.argsort(lengths[samples], kind="stable")]
    tokens_before = np.cumsum(lengths[ordered]) - lengths[ordered]
    shares = np.arange(1, num_shards) * int(lengths[ordered].sum()) / num_shards
    cuts = np.searchsorted(tokens_before, shares)
    # One long sample can swallow several shares: leave at least one sample to every shard.
    earliest = np.arange(1, num_shards)
    latest = len(samples) - num_shards + earliest
    cuts = np.maximum.accumulate(np.maximum(cuts, 1) - earliest) + earliest if num_shards > 1 else cuts
    return tuple(_shard(batch, part) for part in np.split(ordered, np.minimum(cuts, latest)))


def cut_into_passes(batch: Batch, shard: LogicalShard, max_num_tokens: int) -> tuple[LogicalShard, ...]:
    """Cut a shard between its samples, so that none of the parts has more than ``max_num_tokens`` with its padding.
    A sample longer than that makes a pass by itself."""
    lengths = (batch.prompt_lengths + batch.response_lengths)[shard.samples].astype(np.int64)
    firsts, longest = [0], 0
    for row, length in enumerate(lengths):
        longest = max(longest, int(length))
        if row > firsts[-1] and longest * (row + 1 - firsts[-1]) > max_num_tokens:
            firsts.append(row)
            longest = int(length)
    if len(firsts) == 1:
        return (shard,)
    return tuple(_shard(batch, samples) for samples in np.split(shard.samples, firsts[1:]))


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


def _shard(batch: Batch, samples: IndexArray) -> LogicalShard:
    return LogicalShard(samples=samples, tokens=batch.tokens_of(samples))


def _starts(lengths: NDArray[np.int32]) -> IndexArray:
    """Where each of some ragged rows begins when they are laid end to end."""
    return np.cumsum(lengths, dtype=np.int64) - lengths
