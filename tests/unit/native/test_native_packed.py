"""What a trainer's layers have beside products gives the same bits on any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from rlserve.native import packed
from rlserve.native.packed import PackedStep
from rlserve.native.rotation import table_of_frequencies

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 24
NUM_TREES, ROWS_OF_TREE = 9, 130


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many threads after each test as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same_bits(compute: Callable[[], Sequence[Tensor]]) -> None:
    """On one thread and on others."""
    torch.set_num_threads(1)
    expected = compute()
    for num_threads in (2, 3):
        torch.set_num_threads(num_threads)
        assert all(map(torch.equal, compute(), expected))


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(dtype: torch.dtype) -> None:
    rows, weight, gradient = normal(1000, 130), normal(130), normal(1000, 130, dtype=dtype)
    assert_same_bits(lambda: [packed.norm(rows, weight, 1e-6, 1.0, dtype)])
    assert_same_bits(lambda: packed.norm_backward(rows, weight, gradient, rows, 1e-6, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates(dtype: torch.dtype) -> None:
    gate_up, gradient = normal(1000, 260, dtype=dtype), normal(1000, 130, dtype=dtype)
    assert_same_bits(lambda: [packed.gate(gate_up, is_gelu=True)])
    assert_same_bits(lambda: packed.gate_backward(gate_up, gradient, is_gelu=False))


def test_rows_are_added_where_they_belong_in_their_order() -> None:
    rows, places = normal(3000, 300), torch.arange(3000) % 7

    def added() -> list[Tensor]:
        out = normal(7, 300)
        packed.add_rows(out, places, rows)
        return [out]

    assert_same_bits(added)
    torch.testing.assert_close(added()[0], normal(7, 300).index_add(0, places, rows), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 17])
def test_attention(dtype: torch.dtype, window: int) -> None:
    """Of trees of two segments each: the second goes on from half of the first."""
    half = ROWS_OF_TREE // 2
    firsts = torch.arange(NUM_TREES)[:, None] * ROWS_OF_TREE + torch.tensor([0, 2 * half - 20])
    segments = torch.cat([firsts.flatten(), torch.tensor([NUM_TREES * ROWS_OF_TREE])]).int()
    lengths = (segments[1:] - segments[:-1]).tolist()
    offsets = [0, half] * NUM_TREES
    positions = torch.cat([torch.arange(at, at + length) for at, length in zip(offsets, lengths, strict=True)]).int()
    parents = torch.tensor([parent for tree in range(NUM_TREES) for parent in (-1, 2 * tree)]).int()
    trees = torch.arange(0, 2 * NUM_TREES + 1, 2).int()
    rotation = table_of_frequencies(torch.linspace(1.0, 0.01, HEAD_DIM // 2), ROWS_OF_TREE)
    norms = normal(2, HEAD_DIM)
    step = PackedStep(
        num_trees=NUM_TREES,
        longest=ROWS_OF_TREE,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        window=window,
        eps=1e-6,
        scale=HEAD_DIM**-0.5,
        positions=positions.data_ptr(),
        segments=segments.data_ptr(),
        parents=parents.data_ptr(),
        trees=trees.data_ptr(),
        rotation=rotation.data_ptr(),
        query_norm=norms[0].data_ptr(),
        key_norm=norms[1].data_ptr(),
    )
    num_rows = NUM_TREES * ROWS_OF_TREE
    qkv = normal(num_rows, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, dtype=dtype)
    gradient = normal(num_rows, NUM_HEADS * HEAD_DIM, dtype=dtype)

    def gradients() -> list[Tensor]:
        of_qkv, of_norms = packed.attend_backward(step, qkv, *packed.attend(step, qkv), gradient)
        assert of_norms is not None
        return [of_qkv, of_norms]

    assert_same_bits(lambda: packed.attend(step, qkv))
    assert_same_bits(gradients)
