"""Which kernels the networks' layers are computed with. Imports no Triton."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Any, Literal

import torch

from rlserve.errors import UserError
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.native_shape import problem_of_kernels

logger = logging.getLogger(__name__)

LayerKernels = Literal["torch", "triton", "native"]


def resolve_kernels(config: TorchTrainerConfig, policy: Any, device: torch.device) -> LayerKernels:
    """The kernels for a policy, and a critic like it, on ``device``. ``auto`` takes ``triton`` on a GPU and ``native``
    on a CPU where they can be had, else ``torch``.

    Raises:
        UserError: kernels were asked for by name, and cannot be had.
    """
    wanted = config.kernels
    if wanted == "auto":
        wanted = "triton" if device.type == "cuda" else "native"
    if wanted == "torch":
        return "torch"
    problem = _problem_of_triton(device) if wanted == "triton" else _problem_of_native(config, policy, device)
    if problem is None:
        logger.info("the trainer's layers are computed by %s kernels", wanted)
        return wanted
    if config.kernels == wanted:
        raise UserError(f"trainer.kernels={wanted} {problem}; or use trainer.kernels=torch")
    logger.warning("the trainer's layers are computed by plain PyTorch, which is slower: %s %s", wanted, problem)
    return "torch"


def _problem_of_native(config: TorchTrainerConfig, policy: Any, device: torch.device) -> str | None:
    """Why packed samples cannot be computed by compiled kernels; None if they can."""
    if config.lora.is_on:
        return f"does not know adapters, and trainer.lora.rank={config.lora.rank}"
    if config.deterministic:
        return "is not for trainer.deterministic=true"
    return problem_of_kernels(policy, device.type)


def _problem_of_triton(device: torch.device) -> str | None:
    """Why Triton cannot be had, and what to do about it; None if it can."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # takes tensors of the CPU: slow, for tests
    if device.type != "cuda" and not is_interpreted:
        return f"does not run on a {device.type} device"
    if find_spec("triton") is None:
        return "needs Triton: pip install 'rlserve[gpu]'"
    return None
