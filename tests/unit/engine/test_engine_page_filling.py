"""Pages are found before they are written to, and what is in them stays."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

from rlserve.native import page_filling
from rlserve.native.page_filling import fill_pages

PAGE = mmap.PAGESIZE
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone is asked")


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@ON_LINUX
def test_pages_are_there_before_anyone_writes_to_them() -> None:
    tensors = [torch.empty(2**25, dtype=torch.uint8) for _ in range(2)]
    before = resident_bytes()
    fill_pages(tensors).join()
    assert resident_bytes() - before > 0.9 * 2**26


@ON_LINUX
def test_what_is_there_stays() -> None:
    tensor = torch.arange(2**20)
    fill_pages([tensor]).join()
    assert torch.equal(tensor, torch.arange(2**20))


def test_memory_that_was_freed_ends_it() -> None:
    tensor = torch.empty(2**23, dtype=torch.uint8)
    tensor.untyped_storage().resize_(0)
    fill_pages([tensor]).join()
    fill_pages([torch.empty(2**23, dtype=torch.uint8)]).join()  # nobody holds it


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, 3 * PAGE + 1])
def test_of_less_than_a_page_nothing_is_asked(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only whole pages, none of them beyond the memory."""
    asked: list[tuple[int, int]] = []

    class Libc:
        @staticmethod
        def madvise(address: object, size: object, advice: int) -> int:
            asked.append((address.value, size.value))  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(page_filling, "_libc", Libc)
    address = 7 * PAGE + 8
    assert page_filling._populate(address, size)
    for begin, length in asked:
        assert begin % PAGE == length % PAGE == 0
        assert address <= begin and begin + length <= address + size  # noqa: PT018
    assert bool(asked) == (size > 2 * PAGE - 8)
