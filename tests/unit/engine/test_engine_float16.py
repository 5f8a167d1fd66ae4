"""Engines that compute in float16: with Triton's programs, and with plain PyTorch to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model, weights_of
from triton_device import DEVICE

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import UserError

REQUESTS = [
    make_request("long", range(1, 20), max_tokens=3, n=2, temperature=0.0),
    make_request("short", [7, 8], max_tokens=5, temperature=0.0, num_top_log_probs=3),
]
NUM_LAYERS = {"qwen3": 1, "gemma2": 2}
"""As few as have all there is to a family: the interpreter takes seconds for each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3", initializer_range=0.15)


def _log_probs(folder: Path, **settings: Any) -> list[float]:
    outputs = run(make_engine(folder, **settings), REQUESTS)
    return [value for request in REQUESTS for sample in outputs[request.id].samples for value in sample.log_probs]


def test_it_rounds_less_than_bfloat16(folder: Path) -> None:
    exact, half, brain = (
        np.array(_log_probs(folder, attention_backend="torch", dtype=dtype))
        for dtype in ("float32", "float16", "bfloat16")
    )
    assert 0 < np.abs(half - exact).mean() < 0.01
    assert np.abs(half - exact).mean() < np.abs(brain - exact).mean()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_the_gpu_backend_gives_the_log_probs_of_plain_pytorch(family: str, tmp_path: Path) -> None:
    save_model(tmp_path, family, initializer_range=0.1, num_hidden_layers=NUM_LAYERS[family])
    found = _log_probs(tmp_path, attention_backend="triton", device=DEVICE.type, dtype="float16")
    expected = _log_probs(tmp_path, attention_backend="torch", dtype="float16")
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_new_weights_arrive_in_it_and_are_proven(folder: Path) -> None:
    engine = make_engine(folder, attention_backend="torch", dtype="float16")
    weights = weights_of("qwen3", 1)
    expected = {name: tensor.half() for name, tensor in weights.items()}
    engine.begin_weight_update(3)
    engine.update_weights(weights)
    engine.finish_weight_update(fingerprint(expected.items()))
    assert engine.weight_version == 3
    assert {tensor.dtype for _, tensor in engine.named_weights()} == {torch.float16}


def test_where_it_cannot_be_computed_it_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="dtype=float16 is not for attention_backend=cpu"):
        make_engine(folder, dtype="float16", attention_backend="cpu")
    with pytest.raises(UserError, match="a quantised kv_cache_dtype is not for dtype=float16"):
        make_engine(folder, dtype="float16", attention_backend="triton", device=DEVICE.type, kv_cache_dtype="int8")
