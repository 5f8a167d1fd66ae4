"""vLLM's own entry-point tests, unmodified, against ``rlserve serve``: an opt-in suite, a test for each of their files.

``RLSERVE_VLLM_SOURCES`` names vLLM's unpacked source distribution, ``RLSERVE_VLLM_PYTHON`` a Python that has vllm and
what its tests import, and ``RLSERVE_VLLM_WORK`` a folder for the stand-ins, which are made once and take a while.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "vllm_tests"))

from run import Suite, rows

_SOURCES = os.environ.get("RLSERVE_VLLM_SOURCES")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not _SOURCES, reason="RLSERVE_VLLM_SOURCES names no sources of vLLM"),
]


def suite() -> Suite:
    return Suite(
        vllm=Path(_SOURCES or "").resolve(),
        python=Path(os.environ.get("RLSERVE_VLLM_PYTHON", sys.executable)).absolute(),
        work=Path(os.environ.get("RLSERVE_VLLM_WORK", "/tmp/rlserve-vllm-tests")),
    )


@pytest.mark.parametrize("file", suite().files if _SOURCES else ["none"])
def test_what_fails_is_explained(file: str) -> None:
    suite().prepare()
    (row,) = rows(suite(), [file])
    if not row["run"]:
        pytest.skip(row["left_out"][0]["why"] if row["left_out"] else "has no test")
    unexplained = [failure for failure in row["failures"] if failure["explained"] is None]
    assert unexplained == []
