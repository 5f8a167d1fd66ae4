"""What can arrive as weights, judged before anything is written."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlserve.errors import WeightsRefusedError

FLOATING_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types that weights may come in. Those of 8 bits are left out: they mean nothing without their scales."""
MAX_VERSION = 2**31 - 1
"""Batches hold versions in 32 bits."""


def check_version(version: object, what: str = "version") -> None:
    """Check that a version is a plain whole number that the books can hold.

    Raises:
        WeightsRefusedError: it is not.
    """
    if type(version) is not int or not 0 <= version <= MAX_VERSION:
        raise WeightsRefusedError(
            f"weights refused: {what} must be a whole number from 0 to {MAX_VERSION}, got {version!r}"
        )


def check_checksum(checksum: object) -> None:
    """Check that a checksum is a number, as ``fingerprint`` gives it.

    Raises:
        WeightsRefusedError: it is not.
    """
    if type(checksum) is not int:
        raise WeightsRefusedError(f"weights refused: the checksum must be a whole number, got {checksum!r}")


def check_tensors(tensors: object) -> None:
    """Check that all of a mapping are tensors whose numbers can be copied; names and shapes are another matter.
    Tensors may lie on any device, in any order of memory, and hold infinities: requests find those.

    Raises:
        WeightsRefusedError: it is no mapping of names, or something in it cannot be a weight.
    """
    if not isinstance(tensors, Mapping):
        raise WeightsRefusedError(f"weights refused: must be a mapping of names to tensors, got {_kind(tensors)}")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise WeightsRefusedError(f"weights refused: names must be strings, got {name!r}")
        problem = find_problem(tensor) or find_type_problem(tensor)
        if problem is not None:
            raise WeightsRefusedError(f"weights refused: {name} {problem}")


def find_problem(tensor: object) -> str | None:
    """Why something is no tensor whose numbers can be copied, or None."""
    if not isinstance(tensor, torch.Tensor):
        return f"must be a torch tensor, got {_kind(tensor)}"
    if tensor.is_meta:
        return "has no numbers: it is on the device meta"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return f"must be dense, got the layout {'nested' if tensor.is_nested else tensor.layout}"
    return None


def find_type_problem(tensor: torch.Tensor) -> str | None:
    """Why the numbers of a tensor are no weights, or None."""
    if tensor.dtype in FLOATING_TYPES:
        return None
    return f"must be of {', '.join(map(str, FLOATING_TYPES))}, got {tensor.dtype}"


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
