"""Which small operations to compute with."""

from __future__ import annotations

from rlserve.engine.kernels.base import Kernels
from rlserve.engine.kernels.torch_kernels import TorchKernels


def create_kernels(backend: str) -> Kernels:
    """The kernels that go with an attention backend."""
    return TorchKernels()
