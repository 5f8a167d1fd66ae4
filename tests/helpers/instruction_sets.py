"""The kernels of older processors on this one."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from rlserve.native.library import MAX_ISA_VARIABLE, load_library

OLDER = ("avx2", "avx512")
only_on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the paths are those of x86")


@contextmanager
def instructions_up_to(name: str) -> Iterator[None]:
    """Compute with nothing newer, and then as before."""
    with mock.patch.dict(os.environ, {MAX_ISA_VARIABLE: name}):
        load_library.cache_clear()
        try:
            yield
        finally:
            load_library.cache_clear()
