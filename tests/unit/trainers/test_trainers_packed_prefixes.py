"""Samples laid end to end: every sample can be read from the rows, and no prefix is there twice."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_samples import random_batch

from rlserve.trainers import Batch
from rlserve.trainers.backends.pytorch.packed import prefixes
from rlserve.trainers.backends.pytorch.packed.prefixes import LEAST_SHARED, PackedInputs, pack
from rlserve.trainers.backends.pytorch.shards import (
    FEW_SHARDS,
    LEAST_SHARD_ROWS,
    LogicalShard,
    cut_into_packed_passes,
    cut_into_packed_shards,
    num_packed_tokens,
)


def alike_batch(seed: int, num_samples: int, *, longest: int = 12, num_letters: int = 2) -> Batch:
    """Samples of so few different tokens that many begin alike, and some are the beginning of another."""
    batch = random_batch(seed, num_samples, longest=longest)
    token_ids = batch.token_ids % num_letters
    loss_mask = np.random.default_rng(seed).random(batch.num_response_tokens) < 0.7
    loss_mask[np.cumsum(batch.response_lengths) - 1] = True
    return dataclasses.replace(batch, token_ids=token_ids, loss_mask=loss_mask)


def text_of(batch: Batch, sample: int) -> list[int]:
    ends = np.cumsum(batch.prompt_lengths + batch.response_lengths)
    length = batch.prompt_lengths[sample] + batch.response_lengths[sample]
    tokens: list[int] = batch.token_ids[ends[sample] - length : ends[sample]].tolist()
    return tokens


def path_of(inputs: PackedInputs, row: int) -> list[int]:
    """All rows that a row sees, as the kernels find them: up through the parents."""
    segments, positions = inputs.segments.tolist(), inputs.positions.tolist()
    segment = max(index for index, first in enumerate(segments[:-1]) if first <= row)
    path, until = [], positions[row] + 1
    while until:
        first = segments[segment]
        path = [*range(first, first + until - positions[first]), *path]
        until = positions[first]
        segment = inputs.parents.tolist()[segment]
    return path


samples_of_any_kind = given(
    seed=st.integers(0, 2**16),
    num_samples=st.integers(1, 14),
    num_letters=st.integers(1, 3),
    states_after=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@samples_of_any_kind
def test_the_path_of_every_state_is_its_sample(
    seed: int, num_samples: int, num_letters: int, states_after: bool
) -> None:
    batch = alike_batch(seed, num_samples, num_letters=num_letters)
    (shard,) = cut_into_packed_shards(batch, np.arange(num_samples), 1)
    inputs = pack(batch, shard.samples, shard.num_shared, states_after=states_after)

    places = iter(zip(inputs.states.tolist(), inputs.targets.tolist(), strict=True))
    responses = np.split(batch.loss_mask, np.cumsum(batch.response_lengths)[:-1])
    for sample in shard.samples.tolist():
        text, prompt = text_of(batch, sample), int(batch.prompt_lengths[sample])
        for index in np.flatnonzero(responses[sample]).tolist():
            state, target = next(places)
            assert inputs.input_ids[path_of(inputs, state)].tolist() == text[: prompt + index + states_after]
            assert target == text[prompt + index]
    assert next(places, None) is None


@settings(max_examples=100, deadline=None)
@samples_of_any_kind
def test_trees_share_nothing_and_lie_beside_each_other(
    seed: int, num_samples: int, num_letters: int, states_after: bool
) -> None:
    batch = alike_batch(seed, num_samples, num_letters=num_letters)
    (shard,) = cut_into_packed_shards(batch, np.arange(num_samples), 1)
    inputs = pack(batch, shard.samples, shard.num_shared, states_after=states_after)
    parents, trees = inputs.parents.tolist(), inputs.trees.tolist()
    assert trees[0] == 0
    assert trees[-1] == len(parents) == len(inputs.segments) - 1
    assert inputs.segments[-1] == len(inputs.input_ids)
    for first, end in pairwise(trees):
        assert [parent for parent in parents[first:end] if not first <= parent < end] == [-1]
        assert parents[first] == -1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), num_samples=st.integers(1, 14), num_letters=st.integers(1, 3))
def test_no_prefix_is_there_twice(seed: int, num_samples: int, num_letters: int) -> None:
    batch = alike_batch(seed, num_samples, num_letters=num_letters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "LEAST_SHARED", 1)
        (shard,) = cut_into_packed_shards(batch, np.arange(num_samples), 1)
        inputs = pack(batch, shard.samples, shard.num_shared)
    texts = [text_of(batch, sample)[:-1] for sample in range(num_samples)]
    different = {tuple(text[:length]) for text in texts for length in range(1, len(text) + 1)}
    assert len(inputs.input_ids) == len(different)


def test_a_few_tokens_that_are_alike_join_no_trees() -> None:
    batch = alike_batch(0, 8, num_letters=1)
    lengths = np.full(8, LEAST_SHARED, dtype=np.int32)
    token_ids = np.concatenate([np.r_[np.zeros(LEAST_SHARED - 1), index] for index in range(8)]).astype(np.int32)
    batch = dataclasses.replace(
        batch.select(np.arange(8)),
        prompt_lengths=lengths - 1,
        response_lengths=np.ones(8, dtype=np.int32),
        token_ids=token_ids,
        **{name: getattr(batch, name)[:8] for name in ("log_probs", "behaviour_log_probs", "weight_versions")},
        loss_mask=np.ones(8, dtype=bool),
    )
    (shard,) = cut_into_packed_shards(batch, np.arange(8), 1)
    assert len(pack(batch, shard.samples, shard.num_shared).trees) - 1 == 8


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**16), num_samples=st.integers(1, 40), num_shards=st.integers(1, 16))
def test_every_sample_is_in_one_shard_whatever_their_order(seed: int, num_samples: int, num_shards: int) -> None:
    batch = alike_batch(seed, num_samples)
    samples = np.arange(num_samples)
    shards = cut_into_packed_shards(batch, np.random.default_rng(seed).permutation(samples), num_shards)
    assert len(shards) == min(num_shards, num_samples, FEW_SHARDS), "few, since all are small"
    assert sorted(np.concatenate([shard.samples for shard in shards])) == samples.tolist()
    tokens = np.concatenate([shard.tokens for shard in shards])
    assert sorted(tokens) == np.flatnonzero(batch.loss_mask).tolist()
    texts = [[text_of(batch, sample) for sample in shard.samples] for shard in shards]
    in_order = cut_into_packed_shards(batch, samples, num_shards)
    assert texts == [[text_of(batch, sample) for sample in shard.samples] for shard in in_order]


def test_there_are_more_shards_where_they_are_not_small() -> None:
    batch = random_batch(0, num_samples=400, longest=60)
    num_tokens = int((batch.prompt_lengths + batch.response_lengths).sum())
    shards = cut_into_packed_shards(batch, np.arange(400), 100)
    assert len(shards) == num_tokens // LEAST_SHARD_ROWS > 2 * FEW_SHARDS
    costs = [num_packed_tokens(batch, shard) for shard in shards]
    assert max(costs) < 1.2 * min(costs)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**16), num_samples=st.integers(1, 40), max_num_tokens=st.integers(1, 300))
def test_passes_keep_the_order_and_the_limit(seed: int, num_samples: int, max_num_tokens: int) -> None:
    batch = alike_batch(seed, num_samples)
    (shard,) = cut_into_packed_shards(batch, np.arange(num_samples), 1)
    passes = cut_into_packed_passes(batch, shard, max_num_tokens)
    assert np.array_equal(np.concatenate([each.samples for each in passes]), shard.samples)
    assert np.array_equal(np.concatenate([each.tokens for each in passes]), shard.tokens)

    def cost(part: LogicalShard) -> int:
        assert part.num_shared[0] == 0
        return num_packed_tokens(batch, part)

    assert all(cost(each) <= max_num_tokens or len(each.samples) == 1 for each in passes)
    assert sum(map(cost, passes)) >= cost(shard)
