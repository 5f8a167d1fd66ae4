"""Which implementation computes: the compiled CPU kernels, or plain PyTorch."""

from __future__ import annotations

import logging
from typing import Literal

from rlserve.engine.native.library import NativeBuildError, load_library
from rlserve.errors import UserError

logger = logging.getLogger(__name__)


def resolve_backend(requested: Literal["auto", "torch", "cpu"]) -> Literal["torch", "cpu"]:
    """The backend to use; ``auto`` takes the compiled kernels where they can be had.

    Raises:
        UserError: ``cpu`` was asked for by name and cannot be compiled here.
    """
    if requested == "torch":
        return "torch"
    try:
        load_library()
    except NativeBuildError as error:
        if requested == "cpu":
            raise UserError(
                f"attention_backend=cpu needs a C++ compiler: {error}; install one or use attention_backend=torch"
            ) from error
        logger.warning("no compiled CPU kernels, plain PyTorch is used and is slower: %s", error)
        return "torch"
    return "cpu"
