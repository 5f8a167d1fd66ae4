"""Where compiled kernels are kept. Imports no torch: who only looks for them need not load it."""

from __future__ import annotations

from pathlib import Path

from rlserve.cache_folder import cache_folder


def kernels_folder() -> Path:
    """The folder, which may not be there yet; it holds nothing else."""
    return cache_folder() / "native"
