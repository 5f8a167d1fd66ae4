"""Which small operations to compute with."""

from __future__ import annotations

from typing import Literal

from rlserve.engine.kernels.base import Kernels
from rlserve.engine.kernels.cpu_kernels import CpuKernels
from rlserve.engine.kernels.torch_kernels import TorchKernels


def create_kernels(backend: Literal["torch", "cpu"]) -> Kernels:
    """The kernels of a backend."""
    return CpuKernels() if backend == "cpu" else TorchKernels()
