"""Which kernels a trainer's layers get."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_samples import save_tiny_model

from rlserve.errors import UserError
from rlserve.native.library import NativeBuildError
from rlserve.trainers import TorchTrainerConfig
from rlserve.trainers.backends.config import LoraConfig
from rlserve.trainers.backends.pytorch import native_shape
from rlserve.trainers.backends.pytorch.fused import choice
from rlserve.trainers.backends.pytorch.fused.choice import resolve_kernels
from rlserve.trainers.backends.pytorch.models import load_policy

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda _name: None)


@pytest.fixture(scope="module")
def policy(model_path: str) -> Any:
    return load_policy(model_path, load_weights=True)


def config_of(kernels: Any, **fields: Any) -> TorchTrainerConfig:
    return TorchTrainerConfig(kernels=kernels, **fields)


def test_auto_takes_triton_on_a_gpu_and_says_so(policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install 'rlserve[gpu]'")
    with caplog.at_level(logging.INFO):
        assert resolve_kernels(config_of("auto"), policy, GPU) == "triton"
    assert [record.message for record in caplog.records] == ["the trainer's layers are computed by triton kernels"]


@pytest.mark.usefixtures("no_triton")
def test_auto_does_without_triton_and_warns(policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_kernels(config_of("auto"), policy, GPU) == "torch"
    assert "pip install 'rlserve[gpu]'" in caplog.text


def test_a_cpu_has_native_kernels(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_kernels(config_of("auto"), policy, CPU) == resolve_kernels(config_of("native"), policy, CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_kernels(config_of("auto"), policy, CPU) == "native"


@pytest.mark.parametrize("device", [CPU, GPU])
def test_torch_is_taken_where_it_is_asked_for(policy: Any, device: torch.device) -> None:
    assert resolve_kernels(config_of("torch"), policy, device) == "torch"


def test_triton_is_refused_on_a_cpu(policy: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.kernels=triton does not run on a cpu device; .*kernels=torch"):
        resolve_kernels(config_of("triton"), policy, CPU)


@pytest.mark.usefixtures("no_triton")
def test_triton_is_refused_where_it_is_not_installed(policy: Any) -> None:
    with pytest.raises(UserError, match=r"needs Triton: pip install 'rlserve\[gpu\]'; .*kernels=torch"):
        resolve_kernels(config_of("triton"), policy, GPU)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"lora": LoraConfig(rank=2)}, r"does not know adapters, and trainer\.lora\.rank=2"),
        ({"deterministic": True}, r"is not for trainer\.deterministic=true"),
    ],
)
def test_what_native_kernels_do_not_know_is_computed_by_torch(
    policy: Any, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], problem: str
) -> None:
    assert resolve_kernels(config_of("auto", **fields), policy, CPU) == "torch"
    assert re.search(problem, caplog.text)
    with pytest.raises(UserError, match=rf"trainer\.kernels=native {problem}; or use trainer\.kernels=torch"):
        resolve_kernels(config_of("native", **fields), policy, CPU)


def test_models_with_experts_have_no_native_kernels(tmp_path: Path) -> None:
    experts = load_policy(save_tiny_model(tmp_path, "qwen3_moe"), load_weights=True)
    assert resolve_kernels(config_of("auto"), experts, CPU) == "torch"
    with pytest.raises(UserError, match=r"trainer\.kernels=native is only for models without experts, and layer 0"):
        resolve_kernels(config_of("native"), experts, CPU)


def test_a_gpu_has_no_native_kernels(policy: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.kernels=native is only for device=cpu, and this .* on cuda"):
        resolve_kernels(config_of("native"), policy, GPU)


def test_without_a_compiler_torch_computes(
    policy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise NativeBuildError("no compiler")

    monkeypatch.setattr(native_shape, "load_library", fail)
    assert resolve_kernels(config_of("auto"), policy, CPU) == "torch"
    assert "which is slower: native needs the compiled CPU kernels: no compiler" in caplog.text
