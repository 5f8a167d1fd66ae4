"""Which kernels a trainer's layers get."""

from __future__ import annotations

import logging

import pytest
import torch

from rlserve.errors import UserError
from rlserve.trainers.backends.pytorch.fused import choice
from rlserve.trainers.backends.pytorch.fused.choice import resolve_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda _name: None)


def test_auto_takes_triton_on_a_gpu_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install 'rlserve[gpu]'")
    with caplog.at_level(logging.INFO):
        assert resolve_kernels("auto", GPU) == "triton"
    assert [record.message for record in caplog.records] == ["the trainer's layers are computed by kernels of Triton"]


@pytest.mark.usefixtures("no_triton")
def test_auto_does_without_triton_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_kernels("auto", GPU) == "torch"
    assert "pip install 'rlserve[gpu]'" in caplog.text


def test_a_cpu_has_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_kernels("auto", CPU) == resolve_kernels("torch", CPU) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_kernels("auto", CPU) == "torch"


def test_torch_is_taken_where_it_is_asked_for() -> None:
    assert resolve_kernels("torch", GPU) == "torch"


def test_triton_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"trainer\.kernels=triton does not run on a cpu device; .*kernels=torch"):
        resolve_kernels("triton", CPU)


@pytest.mark.usefixtures("no_triton")
def test_triton_is_refused_where_it_is_not_installed() -> None:
    with pytest.raises(UserError, match=r"needs Triton: pip install 'rlserve\[gpu\]'; .*kernels=torch"):
        resolve_kernels("triton", GPU)
