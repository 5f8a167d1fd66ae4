"""A fingerprint of named tensors, computed where they live: on the trainer before, in the engine after.

The commonest serious defect of this kind of system is silent: weights that never arrived, or arrived in part.
A fingerprint of what an engine has really loaded, compared with what the trainer published, finds it at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from rlserve.native.copying import can_copy, copy_all
from rlserve.native.library import NativeBuildError, load_library

_MULTIPLIER = 0x5851F42D4C957F2D  # of Knuth's MMIX generator: odd, so no bit is lost; below 2^63, so it fits int64
_MASK = (1 << 64) - 1
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ELEMENTS_AT_ONCE = 2**20
"""Elements widened to 64 bits at a time: the largest tensor must not be there three times over."""
_BYTES_AT_ONCE = 2**28
"""Tensors of a GPU that are held to be summed up together: each may have been made for this."""


def tensor_fingerprint(tensor: torch.Tensor) -> int:
    """Position-sensitive 64-bit sum over the bits of a tensor of any type, on its own device.

    Element i contributes ``bits(i) * (multiplier * (2 i + 1))`` modulo 2^64: exact integer arithmetic, so the
    result depends neither on the device nor on the order of summation.
    """
    return _fingerprints([tensor])[0]


def fingerprint_of_sum(total: int) -> int:
    """Of a tensor whose ``bits(i) * (2 i + 1)`` are summed up already, as compiled copies do on their way."""
    return total * _MULTIPLIER & _MASK


def copied_fingerprints(copies: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    """Copy each first tensor into the second, in the second's type, and return the fingerprints of what was written: in
    one pass where compiled code can."""
    found = [0] * len(copies)
    compiled: dict[torch.dtype, list[int]] = {}
    others: list[int] = []
    for place, (source, target) in enumerate(copies):
        if has_compiled_sums() and can_copy(source, target):
            compiled.setdefault(source.dtype, []).append(place)
        else:
            target.copy_(source)
            others.append(place)
    for place, of_tensor in zip(others, _fingerprints([copies[place][1] for place in others]), strict=True):
        found[place] = of_tensor
    for places in compiled.values():
        for place, total in zip(places, copy_all([copies[place] for place in places]), strict=True):
            found[place] = fingerprint_of_sum(total)
    return found


def _fingerprints(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Of each of them."""
    totals = [0] * len(tensors)
    on_device: dict[tuple[torch.device, torch.dtype], list[tuple[int, torch.Tensor]]] = {}
    for place, tensor in enumerate(tensors):
        flat = tensor.detach().contiguous().flatten()
        bits = flat.view(_BITS[flat.element_size()])
        if bits.device.type == "cuda" and _device_sums() is not None:
            on_device.setdefault((bits.device, bits.dtype), []).append((place, bits))
        else:
            compiled = _compiled_sum(bits.dtype) if bits.device.type == "cpu" else None
            totals[place] = (
                _sum(bits) if compiled is None else compiled(bits.data_ptr(), len(bits), torch.get_num_threads())
            )
    for alike in on_device.values():
        for (place, _), total in zip(alike, _device_sums()([bits for _, bits in alike]), strict=True):
            totals[place] = total
    return [fingerprint_of_sum(total) for total in totals]


def _sum(bits: torch.Tensor) -> int:
    """Of ``bits(i) * (2 i + 1)`` over all elements."""
    odd = torch.arange(1, 2 * min(len(bits), _ELEMENTS_AT_ONCE) + 1, 2, dtype=torch.int64, device=bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), _ELEMENTS_AT_ONCE):
        part = bits[start : start + _ELEMENTS_AT_ONCE].to(torch.int64)
        total += (part * odd[: len(part)]).sum() + 2 * start * part.sum()
    return int(total.item())


@cache
def _compiled_sum(dtype: torch.dtype) -> Any:
    """The same, many times as fast; None where it cannot be had."""
    if dtype not in (torch.int16, torch.int32) or not has_compiled_sums():
        return None
    return getattr(load_library(), f"weighted_sum_{'int16' if dtype is torch.int16 else 'int32'}")


@cache
def _device_sums() -> Any:
    """The same for many tensors on a GPU at once; None without Triton."""
    try:
        from rlserve.engine.weights.device_sums import weighted_sums
    except ImportError:
        return None
    return weighted_sums


@cache
def has_compiled_sums() -> bool:
    """Whether there are compiled kernels."""
    try:
        load_library()
    except NativeBuildError:  # whoever needs the kernels says so
        return False
    return True


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
    """64-bit fingerprint of tensors with their names, in any order.

    Names, shapes and types take part, so a tensor under the wrong name or of the wrong type is found too.
    """
    return total_fingerprint(
        named_fingerprint(name, tensor.shape, tensor.dtype, of_tensor)
        for some in _held_at_once(tensors)
        for (name, tensor), of_tensor in zip(some, _fingerprints([tensor for _, tensor in some]), strict=True)
    )


def _held_at_once(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """One after the other on a CPU, several on a GPU, where each wait costs more than many sums."""
    held: list[tuple[str, torch.Tensor]] = []
    num_bytes = 0
    for name, tensor in tensors:
        held.append((name, tensor))
        num_bytes += tensor.nbytes
        if tensor.device.type == "cpu" or num_bytes >= _BYTES_AT_ONCE:
            yield held
            held, num_bytes = [], 0
    if held:
        yield held


def named_fingerprint(name: str, shape: Sequence[int], dtype: torch.dtype, of_tensor: int) -> int:
    """What a tensor adds to the fingerprint of all, if its own is ``of_tensor``."""
    label = zlib.crc32(f"{name}|{tuple(shape)}|{dtype}".encode())
    return of_tensor ^ (label * _MULTIPLIER & _MASK)


def total_fingerprint(named: Iterable[int]) -> int:
    """Of all tensors, from what each adds to it."""
    return sum(named) & _MASK
