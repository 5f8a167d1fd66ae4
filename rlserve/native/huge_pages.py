"""Large pages for large tensors: attention jumps from block to block, and each jump to another page is looked up."""

from __future__ import annotations

import ctypes
import mmap

import torch

_HUGE_PAGE_BYTES = 2**21


def advise_huge_pages(tensor: torch.Tensor) -> None:
    """Ask the system to back the tensor's memory with large pages, as far as it lies on whole ones. Only Linux is
    asked, and may decline: it is advice. To be repeated when the memory was freed and taken again."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    address, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    start = -(-address // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    if end - start >= _HUGE_PAGE_BYTES:
        size = (end - start) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
