"""Which kernels the networks' layers are computed with. Imports no Triton."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Literal

import torch

from rlserve.errors import UserError

logger = logging.getLogger(__name__)

LayerKernels = Literal["torch", "triton"]


def resolve_kernels(requested: Literal["auto"] | LayerKernels, device: torch.device) -> LayerKernels:
    """The kernels to use on ``device``; ``auto`` takes ``triton`` on a GPU where it is installed, else ``torch``.

    Raises:
        UserError: ``triton`` was asked for by name, and cannot be had.
    """
    if requested == "torch" or (requested == "auto" and device.type != "cuda"):
        return "torch"
    problem = _problem_of_triton(device)
    if problem is None:
        logger.info("the trainer's layers are computed by kernels of Triton")
        return "triton"
    if requested == "triton":
        raise UserError(f"trainer.kernels=triton {problem}; or use trainer.kernels=torch")
    logger.warning("the trainer's layers are computed by plain PyTorch, which is slower: triton %s", problem)
    return "torch"


def _problem_of_triton(device: torch.device) -> str | None:
    """Why Triton cannot be had, and what to do about it; None if it can."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # takes tensors of the CPU: slow, for tests
    if device.type != "cuda" and not is_interpreted:
        return f"does not run on a {device.type} device"
    if find_spec("triton") is None:
        return "needs Triton: pip install 'rlserve[gpu]'"
    return None
