"""The Triton attention against the plain PyTorch one: same tokens, same pages, same answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton_device import DEVICE

from rlserve.engine.attention.base import AttentionBackend, StepLayout
from rlserve.engine.attention.query_tiles import count_single, count_splits, query_tiles
from rlserve.engine.attention.torch_paged import (
    Fp8TorchPagedAttention,
    Int8TorchPagedAttention,
    TorchPagedAttention,
)
from rlserve.engine.attention.triton_paged import (
    Fp8TritonPagedAttention,
    Int8TritonPagedAttention,
    TritonPagedAttention,
    check_fp8,
)
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.rope import rotation_table
from rlserve.errors import UserError

NUM_BLOCKS = 24


def make_spec(head_dim: int = 16, num_heads: int = 4, num_kv_heads: int = 2, **changes: object) -> ModelSpec:
    shape = {"num_layers": 1, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "max_position": 512}
    rope = {"rope_theta": 100.0, "rope_scaling": None}
    others = {"architecture": "test", "rms_norm_eps": 1e-6, "tied_embeddings": True, "eos_token_ids": ()}
    return ModelSpec(**(shape | sizes | rope | others | changes))  # type: ignore[arg-type]


def make_layout(spans: list[tuple[int, int]], block_size: int, seed: int = 0) -> StepLayout:
    """A step of sequences that compute positions [begin, end); each has blocks of its own, in no order."""
    blocks = np.random.default_rng(seed).permutation(NUM_BLOCKS).astype(np.int32)
    width = max(-(-end // block_size) for _, end in spans)
    tables = np.stack([np.resize(blocks[row * width : (row + 1) * width], width) for row in range(len(spans))])
    assert len(spans) * width <= NUM_BLOCKS
    positions = np.concatenate([np.arange(begin, end, dtype=np.int32) for begin, end in spans])
    rows = np.repeat(np.arange(len(spans)), [end - begin for begin, end in spans])
    return StepLayout(
        token_ids=np.zeros(len(positions), dtype=np.int64),
        positions=positions,
        cache_slots=tables[rows, positions // block_size].astype(np.int64) * block_size + positions % block_size,
        query_starts=np.cumsum([0, *(end - begin for begin, end in spans)]).astype(np.int32),
        table_rows=np.arange(len(spans), dtype=np.int32),
        block_tables=tables,
    )


def attend(
    attention: AttentionBackend, spec: ModelSpec, layout: StepLayout, *, with_norms: bool = True
) -> NDArray[np.float32]:
    """Run one step over a cache filled with random numbers; [layers, tokens, N * D]."""
    generator = torch.Generator().manual_seed(1)
    caches = list(attention._tensors())
    dtype = caches[0].dtype

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    for cache in caches:
        cache.copy_(random(cache.numel()).view(cache.shape))
    norms = [random(spec.head_dim) for _ in range(2)] if with_norms else [None, None]
    attention.begin_step(layout)
    outs = []
    for layer in range(spec.num_layers):
        qkv = random(layout.num_tokens, spec.query_size + 2 * spec.kv_size)
        outs.append(torch.full((layout.num_tokens, spec.query_size), torch.nan, dtype=dtype, device=DEVICE))
        attention.attend(layer, qkv, *norms, outs[-1])
    return torch.stack(outs).float().cpu().numpy()


def both(
    spec: ModelSpec,
    spans: list[tuple[int, int]],
    block_size: int = 4,
    *,
    with_norms: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    table = rotation_table(spec, 512).to(DEVICE)
    return tuple(  # type: ignore[return-value]
        attend(
            backend(spec, table, num_blocks=NUM_BLOCKS, block_size=block_size, dtype=dtype),
            spec,
            make_layout(spans, block_size),
            with_norms=with_norms,
        )
        for backend in (TritonPagedAttention, TorchPagedAttention)
    )


MIXED = [(5, 6), (9, 10), (0, 1), (1, 4), (12, 16), (0, 3)]
"""Decoding, then chunks of prompts."""


@pytest.mark.parametrize(
    ("head_dim", "num_heads", "num_kv_heads"), [(16, 4, 2), (20, 2, 2), (64, 6, 2), (128, 8, 1), (256, 2, 1)]
)
def test_decoding_beside_chunks_with_any_heads(head_dim: int, num_heads: int, num_kv_heads: int) -> None:
    found, expected = both(make_spec(head_dim, num_heads, num_kv_heads), MIXED)
    np.testing.assert_allclose(found, expected, atol=4e-6, rtol=1e-5)


@pytest.mark.parametrize("block_size", [1, 16, 48])
def test_any_page_size(block_size: int) -> None:
    spans = [(7, 8), (7, 11)] if block_size == 1 else MIXED[1:5]
    found, expected = both(make_spec(), spans, block_size, with_norms=False)
    np.testing.assert_allclose(found, expected, atol=4e-6, rtol=1e-5)


def test_a_tile_ends_with_its_sequence_and_long_chunks_have_several() -> None:
    found, expected = both(make_spec(num_heads=8, num_kv_heads=1), [(61, 72), (0, 9)], 16)
    np.testing.assert_allclose(found, expected, atol=4e-6, rtol=1e-5)


def test_half_precision() -> None:
    found, expected = both(make_spec(), MIXED, dtype=torch.float16)
    np.testing.assert_allclose(found, expected, atol=4e-3)


def test_windows_soft_caps_norm_offset_and_local_positions() -> None:
    spec = make_spec(
        num_layers=2,
        layer_windows=(0, 4),
        attention_softcap=3.0,
        attention_scale=0.4,
        norm_offset=1.0,
        local_rope_theta=10.0,
    )
    found, expected = both(spec, MIXED)
    np.testing.assert_allclose(found, expected, atol=4e-6, rtol=1e-5)


def test_a_window_skips_the_keys_before_it() -> None:
    found, expected = both(make_spec(layer_windows=(9,)), [(80, 81), (60, 63)], 16)
    np.testing.assert_allclose(found, expected, atol=4e-6, rtol=1e-5)


@pytest.mark.parametrize("num_splits", [2, 4])
def test_few_long_contexts_are_split(num_splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlserve.engine.attention.triton_paged.count_splits", lambda *arguments: num_splits)
    found, expected = both(make_spec(), [(150, 151), (3, 4)], 16)
    np.testing.assert_allclose(found, expected, atol=4e-6, rtol=1e-5)


def test_a_token_without_a_slot_is_not_stored() -> None:
    spec = make_spec()
    attention = TritonPagedAttention(
        spec, rotation_table(spec, 512).to(DEVICE), num_blocks=4, block_size=4, dtype=torch.float32
    )
    caches = [cache.fill_(7.0) for cache in attention._tensors()]
    layout = make_layout([(0, 1), (2, 3)], 4)
    layout.cache_slots[:] = -1
    layout.block_tables[:] = 0
    attention.begin_step(layout)
    attention.attend(0, torch.ones(2, 128, device=DEVICE), None, None, torch.empty(2, 64, device=DEVICE))
    assert all(bool((cache == 7.0).all()) for cache in caches)


def test_copied_blocks_are_equal_and_others_stay() -> None:
    spec = make_spec()
    attention = TritonPagedAttention(
        spec, rotation_table(spec, 8).to(DEVICE), num_blocks=6, block_size=2, dtype=torch.float32
    )
    caches = [cache.copy_(torch.arange(6.0).view(6, 1, 1, 1)) for cache in attention._tensors()]
    attention.copy_blocks([1, 1, 4], [2, 0, 5])
    for cache in caches:
        assert cache[:, 0, 0, 0].tolist() == [1.0, 1.0, 1.0, 3.0, 4.0, 4.0]


def _prefill_and_decode(attention: AttentionBackend, spec: ModelSpec) -> NDArray[np.float32]:
    """Two steps of the same sequences; [tokens of both, N * D]."""
    generator = torch.Generator().manual_seed(3)
    outs = []
    for spans in ([(0, 13), (0, 5)], [(13, 14), (5, 8)]):
        layout = make_layout([(0, 16), (0, 16)], 4)
        layout = replace(make_layout(spans, 4), block_tables=layout.block_tables)
        rows = np.repeat([0, 1], np.diff(layout.query_starts))
        layout.cache_slots[:] = layout.block_tables[rows, layout.positions // 4] * 4 + layout.positions % 4
        attention.begin_step(layout)
        qkv = torch.randn(layout.num_tokens, spec.query_size + 2 * spec.kv_size, generator=generator)
        qkv[:, -1] *= 4.0  # the heads of a token have unlike scales
        outs.append(torch.empty(layout.num_tokens, spec.query_size, device=DEVICE))
        attention.attend(0, qkv.to(DEVICE), None, None, outs[-1])
    return torch.cat(outs).cpu().numpy()


@pytest.mark.parametrize("changes", [{}, {"head_dim": 20}, {"attention_softcap": 3.0, "layer_windows": (6,)}])
@pytest.mark.parametrize(
    ("quantised", "reference"),
    [(Int8TritonPagedAttention, Int8TorchPagedAttention), (Fp8TritonPagedAttention, Fp8TorchPagedAttention)],
)
@pytest.mark.usefixtures("fp8_as_on_a_gpu")
def test_a_quantised_cache_is_written_and_read_as_the_reference_does(
    quantised: type[AttentionBackend], reference: type[AttentionBackend], changes: dict[str, Any]
) -> None:
    spec = make_spec(**changes)
    table = rotation_table(spec, 64).to(DEVICE)
    found, expected, exact = (
        _prefill_and_decode(backend(spec, table, num_blocks=NUM_BLOCKS, block_size=4, dtype=torch.float32), spec)
        for backend in (quantised, reference, TritonPagedAttention)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)
    assert 1e-3 < np.abs(found - exact).mean() < 0.05


@pytest.mark.parametrize("quantised", [Int8TritonPagedAttention, Fp8TritonPagedAttention])
def test_blocks_of_a_quantised_cache_are_copied_and_its_memory_is_given_back(quantised: type[AttentionBackend]) -> None:
    spec = make_spec(head_dim=128, num_layers=2)
    attention = quantised(spec, rotation_table(spec, 8).to(DEVICE), num_blocks=6, block_size=2, dtype=torch.bfloat16)
    caches = [cache.copy_(torch.arange(6.0).view(6, *[1] * (cache.ndim - 1))) for cache in attention._tensors()]
    attention.copy_blocks([1, 4], [2, 5])
    for cache in caches:
        assert cache.float().flatten(1)[:, -1].tolist() == [0.0, 1.0, 1.0, 3.0, 4.0, 4.0]
    num_bytes = sum(cache.nbytes for cache in caches)
    assert num_bytes == 6 * quantised.block_bytes(spec, 2, torch.bfloat16)
    assert num_bytes * 1.9 < 6 * TritonPagedAttention.block_bytes(spec, 2, torch.bfloat16) < num_bytes * 2
    attention.release()
    assert sum(cache.untyped_storage().nbytes() for cache in caches) == 0
    attention.restore()
    assert sum(cache.untyped_storage().nbytes() for cache in caches) == num_bytes


def test_a_gpu_that_does_not_know_fp8_is_refused() -> None:
    check_fp8((8, 9))
    with pytest.raises(UserError, match=r"compute capability 8.9 or later, this one has 8.6: use kv_cache_dtype=int8"):
        check_fp8((8, 6))


def test_tiles_cover_each_token_once() -> None:
    starts = np.array([0, 1, 2, 9, 10, 22], dtype=np.int32)
    assert count_single(starts) == 2
    assert count_single(starts[:3]) == 2
    tiles = query_tiles(starts, 2, 5)
    assert tiles.tolist() == [[2, 7, 9, 10, 15, 20], [5, 2, 1, 5, 5, 2], [2, 2, 3, 4, 4, 4]]
    assert query_tiles(starts[:3], 2, 5).shape == (3, 0)


def test_contexts_are_split_only_where_programs_are_few_and_contexts_long() -> None:
    assert count_splits(num_programs=2048, longest_context=4096, num_multiprocessors=132) == 1
    assert count_splits(num_programs=8, longest_context=100, num_multiprocessors=132) == 1
    assert count_splits(num_programs=8, longest_context=512, num_multiprocessors=132) == 4
    assert count_splits(num_programs=8, longest_context=4096, num_multiprocessors=132) == 16
    assert count_splits(num_programs=100, longest_context=4096, num_multiprocessors=132) == 2
