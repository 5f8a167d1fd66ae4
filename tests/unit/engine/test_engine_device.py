"""Which device and backend an engine takes, and how arrays get there."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model, weights_of

from rlserve.engine.device import backend
from rlserve.engine.device.transfer import upload
from rlserve.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("requested", "has_gpu", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_auto_takes_the_gpu_if_there_is_one(
    requested: str, has_gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert backend.resolve_device(requested).type == expected  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda, but torch sees no GPU here"):
        make_engine(save_model(tmp_path / "model"), device="cuda")


def test_backends_by_device(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: object())
    monkeypatch.setattr(backend, "load_library", lambda: None)
    monkeypatch.setattr(backend, "interprets_triton", lambda: False)
    assert backend.resolve_backend("auto", CPU) == "cpu"
    assert backend.resolve_backend("auto", CUDA) == "triton"
    assert backend.resolve_backend("flash", CUDA) == "flash"
    assert backend.resolve_backend("torch", CUDA) == "torch"
    with pytest.raises(
        UserError,
        match="triton does not run on a cpu device: set another device, use cpu, or use attention_backend=torch",
    ):
        backend.resolve_backend("triton", CPU)
    with pytest.raises(UserError, match="attention_backend=cpu does not run on a cuda device"):
        backend.resolve_backend("cpu", CUDA)
    assert not caplog.records


def test_without_triton_a_gpu_computes_in_plain_pytorch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert backend.resolve_backend("auto", CUDA) == "torch"
    assert "triton needs Triton: pip install 'rlserve[gpu]'" in caplog.text
    with pytest.raises(UserError, match="attention_backend=triton needs Triton"):
        backend.resolve_backend("triton", CUDA)


def test_arrays_keep_shape_type_and_place() -> None:
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([0.5, -1.5], dtype=np.float32),
        np.zeros((3, 0), dtype=np.int32),
        np.arange(10, dtype=np.int32)[::2],
    ]
    for tensor, array in zip(upload(arrays, CPU), arrays, strict=True):
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
    memory = torch.zeros(32, dtype=torch.int32)
    first, again = (upload(arrays, CPU, memory) for _ in range(2))
    assert [tensor.data_ptr() for tensor in first] == [tensor.data_ptr() for tensor in again]
    assert all(tensor.data_ptr() % 16 == memory.data_ptr() % 16 for tensor in first if tensor.numel())
    np.testing.assert_array_equal(again[3].numpy(), arrays[3])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_memory_goes_back_to_the_system_every_time(tmp_path: Path) -> None:
    """The allocator keeps what is small, and takes ever larger memory for small, unless it is told."""
    shape = {"hidden_size": 256, "intermediate_size": 4096, "vocab_size": 8192, "num_hidden_layers": 4, "head_dim": 64}
    weights = weights_of("qwen3", 0, **shape)
    engine = make_engine(save_model(tmp_path, **shape), num_blocks=1024, block_size=16)
    num_bytes = sum(weight.nbytes for _, weight in engine.named_weights())
    cache_bytes = 2 * 4 * 2 * 64 * 4 * 1024 * 16
    for version in range(1, 3):
        outputs = run(engine, [make_request(str(seed), [seed] * 200, max_tokens=2, seed=seed) for seed in range(40)])
        assert all(output.finished for output in outputs.values())
        used_blocks = 40 * 13
        before = _resident_bytes()
        engine.release_memory(weights=False, kv_cache=True)
        between = _resident_bytes()
        assert before - between > 0.9 * cache_bytes * used_blocks / 1024
        engine.release_memory(weights=True, kv_cache=False)
        assert between - _resident_bytes() > 0.9 * num_bytes
        engine.restore_memory()
        engine.load_weights(version, weights)
