"""Weights as int8: close to the full ones, rounded anew at every update, and refused where they cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_builders import VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of

from rlserve.engine import Engine
from rlserve.errors import UserError

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "initializer_range": 0.05}


def _prompt_log_probs(engine: Engine) -> np.ndarray[Any, Any]:
    """Of the same 8 prompts, one behind the other."""
    requests = [
        make_request(
            str(index), [(7 * place + index) % VOCAB_SIZE for place in range(60)], max_tokens=1, prompt_log_probs=0
        )
        for index in range(8)
    ]
    outputs = run(engine, requests)
    assert all(output.error is None for output in outputs.values())
    return np.concatenate([np.array(outputs[request.id].prompt_log_probs[1:]) for request in requests])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_log_probs_are_close_to_those_of_the_full_weights(family: str, dtype: str, tmp_path: Path) -> None:
    save_model(tmp_path, family, **WIDE)
    full = _prompt_log_probs(make_engine(tmp_path, dtype=dtype))
    rounded = _prompt_log_probs(make_engine(tmp_path, dtype=dtype, weight_dtype="int8"))
    assert np.abs(rounded - full).mean() < 0.05
    assert not np.array_equal(rounded, full)


def test_an_update_is_rounded_anew_and_the_full_weights_are_kept(tmp_path: Path) -> None:
    save_model(tmp_path, "qwen2")
    updated = make_engine(tmp_path, weight_dtype="int8")
    updated.load_weights(1, weights_of("qwen2", 1))
    updated.release_memory(weights=True)
    updated.restore_memory()
    updated.load_weights(2, weights_of("qwen2", 2))
    save_model(tmp_path / "new", "qwen2", seed=2)
    fresh = make_engine(tmp_path / "new", weight_dtype="int8")
    assert np.array_equal(_prompt_log_probs(updated), _prompt_log_probs(fresh))
    kept, given = dict(updated.named_weights()), weights_of("qwen2", 2)
    assert all(kept[name].equal(given[name].to(kept[name].dtype)) for name in kept)


@pytest.mark.parametrize(("family", "backend"), [("qwen3_moe", "cpu"), ("llama", "torch")])
def test_it_is_refused_where_there_is_none(family: str, backend: str, tmp_path: Path) -> None:
    save_model(tmp_path, family)
    with pytest.raises(UserError, match="weight_dtype=int8 is only for a CPU"):
        make_engine(tmp_path, attention_backend=backend, weight_dtype="int8")
