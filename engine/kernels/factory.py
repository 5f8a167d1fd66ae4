"""Which small operations to compute with."""

from __future__ import annotations

from rlserve.engine.device.backend import Backend
from rlserve.engine.kernels.base import Kernels
from rlserve.engine.kernels.cpu_kernels import CpuKernels
from rlserve.engine.kernels.torch_kernels import TorchKernels


def create_kernels(backend: Backend) -> Kernels:
    """The kernels of a backend. Those of a GPU are imported only here: they need Triton."""
    if backend in ("triton", "flash"):
        from rlserve.engine.kernels.triton_kernels import TritonKernels

        return TritonKernels()
    return CpuKernels() if backend == "cpu" else TorchKernels()
