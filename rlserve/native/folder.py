"""Where compiled kernels are kept. Imports nothing, so that who only looks for them need not load torch."""

from __future__ import annotations

from pathlib import Path


def kernels_folder() -> Path:
    """The folder, which may not be there yet; it holds nothing else."""
    return Path.home() / ".cache" / "rlserve" / "native"
