"""Cutting batches into mini-batches and logical shards, and padding them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_samples import random_batch

from rlserve.trainers import Batch
from rlserve.trainers.backends.pytorch.shards import (
    PASS_COST_TOKENS,
    LogicalShard,
    cut_into_passes,
    cut_into_shards,
    num_padded_tokens,
    padding_share,
    shard_inputs,
)
from rlserve.trainers.mini_batches import mini_batches


def batch_of_lengths(lengths: list[int]) -> Batch:
    """Samples of one prompt token each, and of so many tokens in all."""
    num_samples, num_response_tokens = len(lengths), sum(lengths) - len(lengths)
    per_token = np.zeros(num_response_tokens, dtype=np.float32)
    return Batch(
        sample_ids=tuple(map(str, range(num_samples))),
        group_ids=("g",) * num_samples,
        prompt_lengths=np.ones(num_samples, dtype=np.int32),
        response_lengths=np.array(lengths, dtype=np.int32) - 1,
        token_ids=np.zeros(sum(lengths), dtype=np.int32),
        loss_mask=np.ones(num_response_tokens, dtype=np.bool_),
        log_probs=per_token,
        behaviour_log_probs=per_token,
        weight_versions=per_token.astype(np.int32),
        rewards=np.zeros(num_samples, dtype=np.float32),
        finish_reasons=("stop",) * num_samples,
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_samples=st.integers(1, 40),
    longest=st.sampled_from([1, 5, 200]),
    num_shards=st.integers(1, 16),
)
def test_every_sample_is_in_one_shard_and_no_shard_is_empty(
    seed: int, num_samples: int, longest: int, num_shards: int
) -> None:
    batch = random_batch(seed, num_samples, longest=longest)
    shards = cut_into_shards(batch, np.arange(num_samples), num_shards)
    assert len(shards) == min(num_shards, num_samples)
    assert all(len(shard.samples) for shard in shards)
    assert sorted(np.concatenate([shard.samples for shard in shards])) == list(range(num_samples))
    tokens = np.concatenate([shard.tokens for shard in shards])
    assert sorted(tokens) == list(range(batch.num_response_tokens))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_samples=st.integers(1, 40),
    longest=st.sampled_from([1, 5, 200]),
    max_num_tokens=st.integers(1, 2000),
)
def test_passes_keep_the_order_and_the_limit(seed: int, num_samples: int, longest: int, max_num_tokens: int) -> None:
    batch = random_batch(seed, num_samples, longest=longest)
    (shard,) = cut_into_shards(batch, np.arange(num_samples), 1)
    passes = cut_into_passes(batch, shard, max_num_tokens)
    assert np.array_equal(np.concatenate([each.samples for each in passes]), shard.samples)
    assert np.array_equal(np.concatenate([each.tokens for each in passes]), shard.tokens)
    lengths = batch.prompt_lengths + batch.response_lengths
    costs = [len(each.samples) * int(lengths[each.samples].max()) for each in passes]
    alone = [len(each.samples) == 1 for each in passes]
    assert all(cost <= max_num_tokens or single for cost, single in zip(costs, alone, strict=True))
    # None is cut needlessly: together two would not have fitted, or their padding would have cost more than a pass.
    for each, following in itertools.pairwise(passes):
        together = np.append(each.samples, following.samples)
        cost = len(together) * int(lengths[together].max())
        apart = sum(num_padded_tokens(batch, part) for part in (each, following))
        assert cost > max_num_tokens or cost >= apart + PASS_COST_TOKENS


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 700), min_size=1, max_size=7),
    max_num_tokens=st.integers(1, 3000),
)
def test_no_other_cuts_into_passes_cost_less(lengths: list[int], max_num_tokens: int) -> None:
    batch = batch_of_lengths(sorted(lengths))
    (shard,) = cut_into_shards(batch, np.arange(batch.num_samples), 1)

    def cost(parts: Iterable[LogicalShard]) -> float:
        costs = [num_padded_tokens(batch, part) for part in parts]
        fits = all(each <= max_num_tokens or len(part.samples) == 1 for each, part in zip(costs, parts, strict=True))
        return sum(costs) + PASS_COST_TOKENS * len(costs) if fits else math.inf

    def parted(places: Iterable[int]) -> list[LogicalShard]:
        return [
            LogicalShard(samples=part, tokens=part, num_shared=part) for part in np.split(shard.samples, list(places))
        ]

    gaps = range(1, batch.num_samples)
    others = [parted(places) for number in range(batch.num_samples) for places in itertools.combinations(gaps, number)]
    assert cost(cut_into_passes(batch, shard, max_num_tokens)) == min(map(cost, others))


def test_little_is_padding_where_lengths_are_log_normal() -> None:
    """As those of answers are: of 128 samples in 12 shards, a twentieth at most."""
    for seed, sigma in enumerate((0.5, 1.0, 1.25)):
        lengths = np.exp(np.random.default_rng(seed).normal(6, sigma, 128)).clip(2, 8192).astype(int)
        batch = batch_of_lengths(lengths.tolist())
        shards = cut_into_shards(batch, np.arange(128), 12)
        passes = [part for shard in shards for part in cut_into_passes(batch, shard, 16384)]
        assert padding_share(batch, passes) < 0.05 < padding_share(batch, shards)


def test_shards_have_like_lengths_inside_and_like_cost_between() -> None:
    batch = random_batch(0, num_samples=400, longest=60)
    lengths = batch.prompt_lengths + batch.response_lengths
    shards = cut_into_shards(batch, np.arange(400), 12)
    spans = [(lengths[shard.samples].min(), lengths[shard.samples].max()) for shard in shards]
    assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(spans))
    costs = [lengths[shard.samples].sum() for shard in shards]
    assert max(costs) < 1.05 * min(costs)


def test_one_very_long_sample_leaves_the_other_shards_their_samples() -> None:
    batch = random_batch(1, num_samples=4, longest=1)
    object.__setattr__(batch, "response_lengths", np.array([1, 1, 1, 1000], dtype=np.int32))
    object.__setattr__(batch, "loss_mask", np.ones(1003, dtype=bool))
    assert [len(shard.samples) for shard in cut_into_shards(batch, np.arange(4), 4)] == [1, 1, 1, 1]


@given(num_samples=st.integers(1, 30), num_mini_batches=st.integers(1, 8), epoch=st.integers(0, 2))
def test_a_pass_visits_every_sample_once(num_samples: int, num_mini_batches: int, epoch: int) -> None:
    parts = mini_batches(num_samples, num_mini_batches, seed=3, step=5, epoch=epoch)
    assert len(parts) == min(num_mini_batches, num_samples)
    assert sorted(np.concatenate(parts)) == list(range(num_samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_order_of_mini_batches_hangs_on_seed_step_and_epoch_alone() -> None:
    def order(seed: int, step: int, epoch: int) -> list[int]:
        return np.concatenate(mini_batches(50, 2, seed=seed, step=step, epoch=epoch)).tolist()

    assert order(1, 2, 3) == order(1, 2, 3)
    assert len({tuple(order(*key)) for key in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0)]}) == 4


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), num_samples=st.integers(1, 12))
def test_states_and_targets_are_the_tokens_before_and_at_each_response_position(seed: int, num_samples: int) -> None:
    batch = random_batch(seed, num_samples)
    ends = np.cumsum(batch.prompt_lengths + batch.response_lengths)
    for shard in cut_into_shards(batch, np.arange(num_samples), 3):
        inputs = shard_inputs(batch, shard, torch.device("cpu"))
        before, targets = [], []
        for sample in shard.samples:
            tokens = batch.token_ids[ends[sample] - batch.response_lengths[sample] - 1 : ends[sample]]
            before += tokens[:-1].tolist()
            targets += tokens[1:].tolist()
        assert inputs.input_ids.flatten()[inputs.states].tolist() == before
        assert inputs.targets.tolist() == targets
        assert len(inputs.targets) == len(shard.tokens)
