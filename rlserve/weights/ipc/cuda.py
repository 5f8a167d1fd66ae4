"""GPU memory by CUDA IPC.

Handles are opened by the GPU that this process computes on, so the one that they come from need not be visible here
(``CUDA_VISIBLE_DEVICES`` of a worker has its own alone): it must be the same one, or one whose memory it can reach
directly. Blocks are taken from the driver, not from PyTorch's allocator: its segments hold other tensors too, and those
that can grow cannot be shown.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from rlserve.errors import WorkerFailedError
from rlserve.weights.ipc.base import IpcMemory, UnreachableMemoryError
from rlserve.weights.reused_memory import Block

_UNIT_BYTES = 2**21
"""Smaller allocations share a unit with others, and a handle stands for all of it."""
_OUT_OF_MEMORY = 2
_LAZY_ENABLE_PEER_ACCESS = 1
_MEMCPY_DEFAULT = 4


class _Handle(ctypes.Structure):
    """``cudaIpcMemHandle_t``."""

    _fields_ = (("reserved", ctypes.c_ubyte * 64),)


class _Shown(ctypes.Structure):
    """What processes are given: a process cannot open a handle of its own, and takes the address."""

    _fields_ = (("process_id", ctypes.c_int64), ("address", ctypes.c_uint64), ("handle", _Handle))


class CudaBlock(Block):
    """Memory of the current GPU."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._address = _allocate(num_bytes)
        weakref.finalize(self, _free, self._address).atexit = False

    def view(self) -> tuple[torch.Tensor, object]:
        held = _CudaArray(self._address, self.num_bytes)
        return torch.as_tensor(held, device=self._device), held


class CudaIpcMemory(IpcMemory):
    """Of the current GPU."""

    def new_block(self, num_bytes: int) -> Block:
        return CudaBlock(num_bytes)

    def handle(self, payload: torch.Tensor) -> bytes:
        shown = _Shown(process_id=os.getpid(), address=payload.data_ptr())
        with torch.cuda.device(payload.device):
            _check(_runtime().cudaIpcGetMemHandle(ctypes.byref(shown.handle), ctypes.c_void_p(shown.address)))
        return bytes(shown)

    def copy(self, handle: bytes, num_bytes: int) -> torch.Tensor:
        shown = _Shown.from_buffer_copy(handle)
        try:
            target = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            raise WorkerFailedError(_no_memory(num_bytes, "what arrives")) from error
        if shown.process_id == os.getpid():
            _copy(target, ctypes.c_void_p(shown.address))
            return target
        try:
            with _opened(shown.handle) as source:
                _copy(target, source)
        except CudaError as error:
            raise UnreachableMemoryError(str(error)) from error
        return target

    def device_name(self) -> str:
        return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


class CudaError(RuntimeError):
    """A call to CUDA failed."""

    def __init__(self, code: int, name: str) -> None:
        super().__init__(code, name)
        self.code = code
        self.name = name

    def __str__(self) -> str:
        return f"CUDA says {self.name} ({self.code})"


class _CudaArray:
    """Memory at an address, as PyTorch takes it."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


@contextmanager
def _opened(handle: _Handle) -> Iterator[ctypes.c_void_p]:
    """The address of another process's memory, for as long as the block lasts."""
    address = ctypes.c_void_p()
    _check(_runtime().cudaIpcOpenMemHandle(ctypes.byref(address), handle, ctypes.c_uint(_LAZY_ENABLE_PEER_ACCESS)))
    try:
        yield address
    finally:
        _check(_runtime().cudaIpcCloseMemHandle(address))


def _copy(target: torch.Tensor, source: ctypes.c_void_p) -> None:
    """Fill ``target``, beside what the GPU is computing, and wait for it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())  # what used the memory of the target before
    address, size = ctypes.c_void_p(target.data_ptr()), ctypes.c_size_t(target.nbytes)
    kind, queue = ctypes.c_int(_MEMCPY_DEFAULT), ctypes.c_void_p(stream.cuda_stream)
    _check(_runtime().cudaMemcpyAsync(address, source, size, kind, queue))
    stream.synchronize()


def _allocate(num_bytes: int) -> int:
    size = ctypes.c_size_t(-(-num_bytes // _UNIT_BYTES) * _UNIT_BYTES)
    address = ctypes.c_void_p()
    try:
        try:
            _check(_runtime().cudaMalloc(ctypes.byref(address), size))
        except CudaError as error:
            if error.code != _OUT_OF_MEMORY:
                raise
            torch.cuda.empty_cache()
            _check(_runtime().cudaMalloc(ctypes.byref(address), size))
    except CudaError as error:
        raise WorkerFailedError(f"{_no_memory(num_bytes, 'a copy of the weights')}: {error}") from error
    assert address.value is not None
    return address.value


def _free(address: int) -> None:
    _check(_runtime().cudaFree(ctypes.c_void_p(address)))


def _no_memory(num_bytes: int, what: str) -> str:
    free_bytes, _ = torch.cuda.mem_get_info()
    wanted, free = (f"{size / 2**20:,.0f} MiB" for size in (num_bytes, free_bytes))
    return (
        f"the GPU has no {wanted} for {what}, {free} are free: leave it more "
        "(trainer.ppo_max_token_len_per_gpu, rollout.engine.gpu_memory_fraction), or say weights=object_store"
    )


@cache
def _runtime() -> Any:
    """CUDA's runtime that PyTorch has loaded, with the GPU's context made."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    assert torch.version.cuda is not None, "this PyTorch is for AMD GPUs"
    runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.partition('.')[0]}")
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    return runtime


def _check(code: int) -> None:
    """Raise :class:`CudaError` for what a call has returned, and take it from where PyTorch would find it."""
    if code:
        runtime = _runtime()
        runtime.cudaGetLastError()
        raise CudaError(code, runtime.cudaGetErrorString(code).decode())
