"""Where what is made once is kept: built-in models, their data, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "RLSERVE_CACHE"


def cache_folder() -> Path:
    """``$RLSERVE_CACHE``, or ``~/.cache/rlserve``; it may not be there yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "rlserve"
