"""Cutting a mini-batch into logical shards and passes, and padding a pass for the model.

Legend: B samples of the batch, S samples of a shard or a pass, L longest input, A response tokens of the batch,
a trained response tokens of a shard or a pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.batch import Batch

IndexArray = NDArray[np.int64]

PASS_COST_TOKENS = 256
"""What one more pass costs, in tokens: so much padding is better computed than cut off."""


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
    """Cut a shard, whose samples are in order of their lengths, so that what is computed is least: all tokens with the
    padding of each pass, and ``PASS_COST_TOKENS`` for each. No pass has more than ``max_num_tokens`` with its padding,
    but a sample longer than that makes one by itself."""
    lengths = (batch.prompt_lengths + batch.response_lengths)[shard.samples].astype(np.int64)
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


def _shard(batch: Batch, samples: IndexArray) -> LogicalShard:
    return LogicalShard(samples=samples, tokens=batch.tokens_of(samples))


def _starts(lengths: NDArray[np.int32]) -> IndexArray:
    """Where each of some ragged rows begins when they are laid end to end."""
    return np.cumsum(lengths, dtype=np.int64) - lengths
