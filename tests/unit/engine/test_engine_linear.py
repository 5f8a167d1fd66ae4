"""Packed products: right, and right again after an update of the weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model, weights_of

from rlserve.engine.decoder import cpu_program, linear
from rlserve.engine.decoder.linear import PACK_FROM, Linear, can_pack
from rlserve.engine.weights.fingerprint import fingerprint

SMALL, LARGE = (40, 24), (PACK_FROM // 256, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["plain", "packed"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_follow_an_update_of_the_weight(shape: tuple[int, int], dtype: torch.dtype, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype) if has_bias else None
    product = Linear(weight, bias)
    for num_rows in (1, 5, 64):
        x = torch.randn(num_rows, shape[1], generator=generator).to(dtype)
        weight.copy_(torch.randn(shape, generator=generator))
        product.weight_changed()
        result = product(x, torch.empty(num_rows, shape[0], dtype=dtype)).double()
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        assert (result - exact).abs().max() < (1e-3 if dtype is torch.float32 else 0.3)


@pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no oneDNN")
def test_an_engine_with_packed_weights_serves_swaps_and_wakes_as_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_program, "is_chosen", lambda *arguments: False)
    save_model(tmp_path, "qwen2")
    requests = [make_request(str(index), range(1, 10 + index), max_tokens=20, seed=index) for index in range(6)]

    def serve() -> list[tuple[int, ...]]:
        engine = make_engine(tmp_path)
        first = run(engine, requests)
        engine.load_weights(1, weights_of("qwen2", 1))
        second = run(engine, requests)
        engine.release_memory(weights=True)
        engine.restore_memory()
        engine.load_weights(2, weights_of("qwen2", 2))
        third = run(engine, requests)
        return [outputs[request.id].samples[0].token_ids for outputs in (first, second, third) for request in requests]

    plain = serve()
    monkeypatch.setattr(linear, "PACK_FROM", 1)
    assert serve() == plain


@pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("deterministic", [False, True])
def test_what_is_staged_is_packed_ahead_and_exchanged(
    deterministic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_program, "is_chosen", lambda *arguments: False)
    monkeypatch.setattr(linear, "PACK_FROM", 1)
    save_model(tmp_path, "qwen2")
    staging, loading = (make_engine(tmp_path, deterministic=deterministic) for _ in range(2))
    parameters = staging._runner._parameters
    places = []
    for version in (1, 2, 3):
        weights = weights_of("qwen2", version)
        staged = staging.stage_weights(weights)
        with monkeypatch.context() as patch:
            patch.delattr(torch.ops.mkldnn, "_reorder_linear_weight")
            loaded = staging.swap_weights(version, staged)
        loading.load_weights(version, weights)
        assert loaded == fingerprint(staging.named_weights()) == fingerprint(loading.named_weights())
        request = make_request(str(version), range(1, 20), max_tokens=20, seed=version)
        found, expected = (run(engine, [request])[str(version)].samples[0] for engine in (staging, loading))
        assert (found.token_ids, found.log_probs) == (expected.token_ids, expected.log_probs)
        places.append([tensor.data_ptr() for tensor in parameters.exchangeable])
    assert places[0] == places[2] != places[1]
    staging.load_weights(4, weights_of("qwen2", 0))
    loading.load_weights(4, weights_of("qwen2", 0))
    request = make_request("4", range(1, 20), max_tokens=20, seed=4)
    assert run(staging, [request])["4"].samples[0].token_ids == run(loading, [request])["4"].samples[0].token_ids
