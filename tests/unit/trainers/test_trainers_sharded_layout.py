"""Which rows of a tensor each rank holds: those that torch gives it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlserve.trainers import LoraConfig, TorchTrainerConfig
from rlserve.trainers.backends.fully_sharded.layout import Cut, Layout
from rlserve.trainers.backends.fully_sharded.shards import RankShards
from rlserve.trainers.elastic.intervals import Interval

CPU = torch.device("cpu")
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(torch.Size)


@given(shape=SHAPES, num_ranks=st.integers(1, 5))
def test_a_tensor_is_cut_as_torch_cuts_it(shape: torch.Size, num_ranks: int) -> None:
    (tensor,) = Layout({"policy": {"weight": shape}}).tensors
    whole = torch.arange(shape.numel()).view(shape)
    chunks = [*whole.chunk(num_ranks), *[whole[:0]] * num_ranks]
    for rank in range(num_ranks):
        part = tensor.part(Cut(rank=rank, num_ranks=num_ranks))
        assert whole.flatten()[part.elements].tolist() == chunks[rank].flatten().tolist()


def test_elements_of_all_tensors_say_which_tensor_they_are_of() -> None:
    layout = Layout({"policy": {"a": torch.Size([4, 2]), "b": torch.Size([3])}, "reference": {"a": torch.Size([4, 2])}})
    assert [tensor.name for tensor in layout.trained] == ["policy.a", "policy.b"]
    tensor, part = layout.at(Interval(9, 11))
    assert (tensor.name, part) == ("policy.b", Interval(1, 3))
    assert layout.tensors[2].held(Cut(rank=1, num_ranks=2)) == (Interval(15, 19),)
    assert layout.tensors[1].held(Cut(rank=3, num_ranks=4)) == layout.tensors[1].held(None) == ()


def test_rows_are_views_of_one_vector_that_begin_at_64_bytes() -> None:
    layout = Layout(
        {
            "policy": {"a": torch.Size([3, 2]), "b": torch.Size([1])},
            "critic": {"a": torch.Size([5])},
            "reference": {"a": torch.Size([3, 2])},
        }
    )
    shards = RankShards(layout, Cut(rank=1, num_ranks=2), CPU)
    assert shards.segments == {"policy": slice(0, 16), "critic": slice(16, 32)}
    for number, tensor in enumerate(layout.tensors):
        shards.rows(tensor).fill_(number + 1)
    assert shards.vector.tolist() == [1.0] * 2 + [0.0] * 14 + [3.0] * 2 + [0.0] * 14
    assert shards.reference.tolist() == [4.0] * 2 + [0.0] * 14
    assert [tuple(place.parameter.shape) for _, place in shards.named_places("policy")] == [(3, 2), (1,)]
    assert shards.rows(layout.tensors[0]).shape == (1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deterministic": True}, "deterministic=true"),
        ({"lora": LoraConfig(rank=4)}, r"lora\.rank=4"),
        ({"kernels": "triton"}, "kernels=triton"),
    ],
)
def test_what_needs_whole_networks_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"sharding.*must be optimizer with {message}"):
        TorchTrainerConfig(sharding="full", **settings)  # type: ignore[arg-type]
