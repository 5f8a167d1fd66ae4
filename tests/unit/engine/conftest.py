"""Engine tests compute with one thread unless they say otherwise: tiny models gain nothing from more, and tests
run beside each other. Whole modules of them run with overlapped scheduling too: see ``engine_builders.BOTH_WAYS``."""

from __future__ import annotations

from collections.abc import Iterator

import engine_builders
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for the test, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def overlaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the engines of the test overlap scheduling, unless the test says so itself."""
    value = bool(getattr(request, "param", False))
    monkeypatch.setitem(engine_builders.SETTINGS, "overlap_scheduling", value)
    return value
