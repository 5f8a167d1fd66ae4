"""Memory gets its pages before it is written to. Else the first write to each page waits until the system has found and
cleared one, in a virtual machine its host as well: prompts took a fifth longer while a KV cache was new."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence

import torch

_PART_BYTES = 2**21
_MADV_POPULATE_WRITE = 23
"""Of Linux since 5.14: as if each page was written to, without a change of what is there."""
_NICENESS = 10


def fill_pages(tensors: Iterable[torch.Tensor]) -> threading.Thread:
    """Have the system find the pages of these tensors, in a thread that gives way to those that compute: the beginnings
    of all first, as blocks are given out in order. It ends early where a tensor is freed, and where the system does not
    know how. Returns the thread, which nobody needs to wait for."""
    thread = threading.Thread(target=_fill, args=([weakref.ref(tensor) for tensor in tensors],), daemon=True)
    thread.start()
    return thread


def _fill(tensors: Sequence[weakref.ref[torch.Tensor]]) -> None:
    if sys.platform != "linux":
        return
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    start, is_left = 0, True
    while is_left:
        is_left = False
        for reference in tensors:
            tensor = reference()
            if tensor is None:
                return
            num_bytes = tensor.untyped_storage().nbytes()
            if start < num_bytes:
                is_left = True
                if not _populate(tensor.data_ptr() + start, min(_PART_BYTES, num_bytes - start)):
                    return
        start += _PART_BYTES


def _populate(address: int, num_bytes: int) -> bool:
    """Whether the whole pages in this memory are there now. Memory that was freed meanwhile is no harm."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    first, end = -(-address // page_bytes) * page_bytes, (address + num_bytes) // page_bytes * page_bytes
    if end <= first:
        return True
    failed = _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_POPULATE_WRITE)
    return not failed


_libc = ctypes.CDLL(None)
