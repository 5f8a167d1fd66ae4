"""Engine tests compute with one thread unless they say otherwise: tiny models gain nothing from more, and tests
run beside each other. Whole modules of them run with overlapped scheduling too: see ``engine_builders.BOTH_WAYS``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


@pytest.fixture
def fp8_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter round to e4m3 as GPUs do, and torch: where rounding up carries into the exponent,
    Triton 3.9's own loses a factor of two."""
    language = pytest.importorskip("triton.language", reason="needs Triton: pip install 'rlserve[gpu]'")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    convert = interpreter._convert_float

    def rounded(values: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if target != language.float8e4nv or source != language.float32:
            return convert(values, source, target, rounding_mode)
        return torch.from_numpy(values.copy()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
