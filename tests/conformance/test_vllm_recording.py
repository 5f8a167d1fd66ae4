"""What the table of vLLM's tests says of a test that did not pass."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent / "vllm_tests"))

from recording import said_by


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("/somewhere/test_x.py", 12, "Skipped: needs four GPUs"), "needs four GPUs"),
        (SimpleNamespace(reprcrash=SimpleNamespace(message="assert 1 == 2")), "assert 1 == 2"),
        ("cannot be set up", "cannot be set up"),
        (None, ""),
    ],
)
def test_only_the_words_of_a_report_are_kept(told: object, said: str) -> None:
    assert said_by(told) == said
