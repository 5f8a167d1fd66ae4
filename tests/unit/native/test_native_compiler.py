"""What the kernels are compiled with."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlserve.native.library import _compiler, _compiler_flags

SOURCE = """
void rotate(const float* head, const float* cosines, const float* sines, float* out, int half) {
    for (int d = 0; d < half; ++d) {
        out[d] = head[d] * cosines[d] - head[d + half] * sines[d];
        out[d + half] = head[d + half] * cosines[d] + head[d] * sines[d];
    }
}
"""


def vectorised_loops(folder: Path, flags: Sequence[str]) -> list[str]:
    """What GCC says that it did to the loops of ``SOURCE``."""
    source = folder / "rotate.cpp"
    source.write_text(SOURCE)
    command = [_compiler(), *flags, "-fopt-info-vec-optimized", "-c", str(source), "-o", str(folder / "rotate.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in done.stderr.splitlines() if "optimized:" in line]


def test_no_loop_has_forms_that_the_addresses_of_memory_choose_between(tmp_path: Path) -> None:
    """They round differently, so results would depend on where the heap has put things."""
    version = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    if "Free Software Foundation" not in version:
        pytest.skip("this compiler is not GCC, whose report is read")
    flags = _compiler_flags()
    assert vectorised_loops(tmp_path, flags) == []
    without = [flag for flag in flags if flag != "-fno-tree-vectorize"]
    assert any("versioned" in line for line in vectorised_loops(tmp_path, without)), "GCC reports such loops"
