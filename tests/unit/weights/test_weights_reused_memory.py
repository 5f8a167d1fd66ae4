"""Memory goes out again when nobody holds it, and never before."""

from __future__ import annotations

import gc

import torch

from rlserve.weights.reused_memory import ReusedMemory


def test_what_nobody_holds_goes_out_again_and_what_somebody_views_does_not() -> None:
    memory = ReusedMemory()
    first = memory.take(1000)
    place, view = first.data_ptr(), first[10:20].view(torch.int8)
    del first
    gc.collect()
    second = memory.take(1000)
    assert second.data_ptr() != place
    second[:] = 7
    assert view.tolist() == [0] * 10
    del view
    gc.collect()
    third = memory.take(1000)
    assert third.data_ptr() == place


def test_one_block_of_the_same_size_is_kept_at_most_and_none_when_freed() -> None:
    memory = ReusedMemory()
    taken = [memory.take(1000) for _ in range(3)]
    places = [tensor.data_ptr() for tensor in taken]
    while taken:
        taken.pop()
    gc.collect()
    other = memory.take(64)
    assert other.nbytes == 64
    again = memory.take(1000)
    assert not again.any()
    del again
    gc.collect()
    assert len(memory._free) == 1
    memory.free()
    assert len(memory._free) == 0
    assert len(set(places)) == 3


def test_nothing_is_a_tensor_too() -> None:
    assert ReusedMemory().take(0).nbytes == 0
