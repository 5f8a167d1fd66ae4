"""Memory goes out again when nobody holds it, and never before."""

from __future__ import annotations

import gc

import torch

from rlserve.weights.reused_memory import ReusedMemory


def address(array: object) -> int:
    return array.ctypes.data


def test_what_nobody_holds_goes_out_again_and_what_somebody_views_does_not() -> None:
    memory = ReusedMemory()
    first = memory.take(1000)
    place, view = address(first), torch.from_numpy(first[10:20].view())
    del first
    gc.collect()
    second = memory.take(1000)
    assert address(second) != place
    second[:] = 7
    assert view.tolist() == [0] * 10
    del view
    gc.collect()
    third = memory.take(1000)
    assert address(third) == place


def test_one_block_of_the_same_size_is_kept_at_most_and_none_when_freed() -> None:
    memory = ReusedMemory()
    arrays = [memory.take(1000) for _ in range(3)]
    places = [address(array) for array in arrays]
    while arrays:
        arrays.pop()
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


def test_nothing_is_an_array_too() -> None:
    assert ReusedMemory().take(0).nbytes == 0
