"""Where an engine computes, and which implementation does it: one table of backends by device."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Literal

import torch

from rlserve.errors import UserError
from rlserve.native.library import NativeBuildError, load_library

logger = logging.getLogger(__name__)

Backend = Literal["torch", "cpu", "triton", "flash"]

BACKENDS: dict[str, tuple[Backend, ...]] = {"cpu": ("cpu", "torch"), "cuda": ("triton", "flash", "torch")}
"""Those of each type of device, the one that ``auto`` prefers first."""


def resolve_device(requested: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to compute on.

    Raises:
        UserError: ``cuda`` was asked for, and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if requested == "cuda" and not has_gpu:
        raise UserError("device=cuda, but torch sees no GPU here; use device=auto, or install a CUDA build of torch")
    return torch.device("cuda" if has_gpu and requested != "cpu" else "cpu")


def resolve_backend(requested: Literal["auto"] | Backend, device: torch.device) -> Backend:
    """The backend to use on ``device``; ``auto`` takes the preferred one where it can be had, else plain PyTorch.

    Raises:
        UserError: a backend asked for by name is not for this device, or lacks what it needs.
    """
    wanted = BACKENDS[device.type][0] if requested == "auto" else requested
    problem = _problem(wanted, device)
    if problem is None:
        return wanted
    if requested != "auto":
        raise UserError(f"attention_backend={requested} {problem}, or use attention_backend=torch")
    logger.warning("no fast kernels, plain PyTorch is used and is slower: %s %s", wanted, problem)
    return "torch"


def _problem(backend: Backend, device: torch.device) -> str | None:
    """Why a backend cannot be had, and what to do about it; None if it can."""
    if backend not in BACKENDS[device.type] and not (backend == "triton" and interprets_triton()):
        fast = " or ".join(name for name in BACKENDS[device.type] if name != "torch")
        return f"does not run on a {device.type} device: set another device, use {fast}"
    if backend in ("triton", "flash") and find_spec("triton") is None:
        return "needs Triton: pip install 'rlserve[gpu]'"
    if backend == "flash" and find_spec("flash_attn") is None:
        return "needs flash-attn: pip install 'rlserve[flash]'"
    if backend == "cpu":
        try:
            load_library()
        except NativeBuildError as error:
            return f"needs a C++ compiler: {error}; install one"
    return None


def interprets_triton() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which takes CPU tensors: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
