"""A step of a decoder as a list of operations for one call of the compiled kernels: see ``program.cpp``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch

from rlserve.native.huge_pages import advise_huge_pages
from rlserve.native.library import load_library
from rlserve.native.low_rank import StepLowRanks
from rlserve.native.thread_count import ThreadCount

_SHARED_FROM = 2**20
"""Multiplications of a product by itself that is worth waking other threads for; bits do not depend on it."""


class Kind(IntEnum):
    """What an operation does. Mirrored by ``Kind`` in ``program.cpp``, where each says what it uses."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    ATTEND = 3
    SILU_MUL = 4
    GELU_TANH_MUL = 5
    TAKE_ROWS = 6
    PUT_ROWS = 7
    HEAD = 8
    CAP = 9
    ADD_LOW_RANKS = 10


class Operation(ctypes.Structure):
    """Mirrored by ``Operation`` in ``program.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "inputs", "outputs", "first_output", "place", "of_wanted")),
        *((name, ctypes.c_float) for name in ("factor", "offset")),
        *((name, ctypes.c_void_p) for name in ("input", "weight", "other", "scales")),
        *((name, ctypes.c_void_p) for name in ("output", "residual", "step", "cache")),
    )


class _Program(ctypes.Structure):
    """Mirrored by ``Program`` in ``program.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("operations", "token_ids", "last_rows", "step")),
        *((name, ctypes.c_int32) for name in ("num_operations", "num_tokens", "num_rows", "num_threads")),
        ("is_int8_cache", ctypes.c_int32),
        ("adapters", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("wall_s", "cpu_s")),
    )


class Projection:
    """A product with a weight in panels (``panels.py``), whoever owns them: ``x @ weight.T + bias``, float32.

    Args:
        num_outputs: rows of the weight.
        bias_N: added to the outputs.
        is_int8: compute with a copy of integers, and a scale for each output: half the memory of bfloat16, and read
            twice as fast.
    """

    def __init__(
        self, panels: torch.Tensor, num_outputs: int, bias_N: torch.Tensor | None = None, *, is_int8: bool = False
    ) -> None:
        self._panels, self._bias_N = panels, bias_N
        self.num_outputs = num_outputs
        self._integers = torch.empty(panels.shape, dtype=torch.int8) if is_int8 else None
        num_padded = panels.shape[0] * panels.shape[2]
        self.bias = None if bias_N is None else torch.zeros(num_padded)
        self.scales = torch.empty(num_padded) if is_int8 else None

    @property
    def weight(self) -> torch.Tensor:
        """What is computed with, in panels."""
        return self._panels if self._integers is None else self._integers

    @property
    def num_inputs(self) -> int:
        """Columns of the weight."""
        return self._panels.shape[1] * self._panels.shape[3]

    def weight_changed(self) -> None:
        """Must be called after weight or bias were written to, before the next product."""
        if self._bias_N is not None:
            assert self.bias is not None
            self.bias[: self.num_outputs] = self._bias_N
        if self._integers is not None:
            assert self.scales is not None
            self._integers.untyped_storage().resize_(self._integers.numel())
            advise_huge_pages(self._integers)
            _function("quantise", self._panels.dtype)(
                self._panels.data_ptr(),
                self._integers.data_ptr(),
                self.scales.data_ptr(),
                self.num_outputs,
                self.num_inputs,
                torch.get_num_threads(),
            )

    def weight_released(self) -> None:
        """Free what was derived from a weight whose memory is freed."""
        if self._integers is not None:
            self._integers.untyped_storage().resize_(0)

    def multiply(self, x_TK: torch.Tensor, out_TN: torch.Tensor) -> torch.Tensor:
        """The product, written to ``out_TN`` (float32) and returned."""
        assert x_TK.is_contiguous()
        assert out_TN.is_contiguous()
        assert out_TN.dtype is torch.float32
        _function("multiply", self._panels.dtype)(
            x_TK.data_ptr(),
            self.weight.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            None if self.scales is None else self.scales.data_ptr(),
            out_TN.data_ptr(),
            len(x_TK),
            self.num_outputs,
            self.num_inputs,
            torch.get_num_threads() if len(x_TK) * self._panels.numel() >= _SHARED_FROM else 1,
        )
        return out_TN


class Program:
    """Operations, and the call that runs them all on a step."""

    def __init__(
        self, operations: Sequence[Operation], dtype: torch.dtype, *, step: int, is_int8_cache: bool = False
    ) -> None:
        """``step``: address of the ``StepArguments`` of any layer."""
        self._operations = (Operation * len(operations))(*operations)
        self._program = _Program(
            operations=ctypes.addressof(self._operations),
            num_operations=len(operations),
            step=step,
            is_int8_cache=is_int8_cache,
        )
        self._run = _function("run_program", dtype)
        self._threads = ThreadCount()

    def run(self, token_ids_T: torch.Tensor, last_rows_R: torch.Tensor, adapters: StepLowRanks | None = None) -> None:
        """Run on the tokens of a step; ``last_rows_R`` are those whose logits are wanted. Both are int64."""
        program = self._program
        program.token_ids, program.num_tokens = token_ids_T.data_ptr(), len(token_ids_T)
        program.last_rows, program.num_rows = last_rows_R.data_ptr(), len(last_rows_R)
        program.adapters = None if adapters is None else adapters.address
        program.num_threads = self._threads.choose(torch.get_num_threads())
        self._run(ctypes.addressof(program))
        self._threads.observe(program.num_threads, wall_s=program.wall_s, cpu_s=program.cpu_s)


def cap(numbers_RV: torch.Tensor, limit: float) -> torch.Tensor:
    """``limit * tanh(numbers / limit)`` in place, of float32, to the bit as ``Kind.CAP`` computes it."""
    assert numbers_RV.is_contiguous()
    load_library().cap_float32(numbers_RV.data_ptr(), *numbers_RV.shape, limit, torch.get_num_threads())
    return numbers_RV


def has_fast_products(dtype: torch.dtype) -> bool:
    """Whether products of the type are best made by these kernels, and not by oneDNN, on this machine."""
    return dtype is torch.float32 or bool(load_library().has_fast_bfloat16())


def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(load_library(), f"{name}_{'float32' if dtype is torch.float32 else 'bfloat16'}")
