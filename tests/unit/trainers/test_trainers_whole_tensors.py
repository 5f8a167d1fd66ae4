"""Which rank gets which tensors of a sharded policy whole, and the index of the files that they write."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import given
from hypothesis import strategies as st

from rlserve.trainers.backends.fully_sharded.layout import Layout
from rlserve.trainers.backends.spread.policy_files import policy_index
from rlserve.trainers.backends.spread.whole_tensors import SpreadTensor, deal_out

SHAPES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=2).map(torch.Size), min_size=1, max_size=20)


def spread(shapes: Mapping[str, torch.Size], num_ranks: int) -> list[SpreadTensor]:
    return Layout({"policy": shapes}).spread_policy(num_ranks)


@given(shapes=SHAPES, num_ranks=st.integers(1, 6))
def test_every_tensor_has_one_rank_and_no_two_ranks_differ_by_more_than_the_largest(
    shapes: list[torch.Size], num_ranks: int
) -> None:
    tensors = spread({str(number): shape for number, shape in enumerate(shapes)}, num_ranks)
    dealt = deal_out(tensors, num_ranks)
    assert len(dealt) == num_ranks
    assert sorted(tensor.elements for of_rank in dealt for tensor in of_rank) == [tensor.elements for tensor in tensors]
    sizes = [sum(tensor.elements.num_elements for tensor in of_rank) for of_rank in dealt]
    assert max(sizes) - min(sizes) <= max(shape.numel() for shape in shapes)
    for of_rank in dealt:
        assert of_rank == sorted(of_rank, key=lambda tensor: tensor.elements), "in the order of the policy"
    assert deal_out(tensors, num_ranks) == dealt


@given(shapes=SHAPES)
def test_no_rank_is_left_out_while_there_are_tensors(shapes: list[torch.Size]) -> None:
    tensors = spread({str(number): shape for number, shape in enumerate(shapes)}, 2)
    assert all(deal_out(tensors, len(tensors)))


def test_the_index_names_the_file_of_each_matrix_of_stacked_experts() -> None:
    tensors = spread({"embed": torch.Size([9, 4]), "layers.0.experts.gate_up_proj": torch.Size([2, 6, 2])}, 2)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    experts = [f"layers.0.experts.{expert}.{part}_proj.weight" for expert in (0, 1) for part in ("gate", "up")]
    assert policy_index(tensors, 2) == {
        "metadata": {"total_size": 4 * (36 + 24)},
        "weight_map": {"embed": first} | dict.fromkeys(experts, second),
    }
