"""Packed products: right, and right again after an update of the weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model, weights_of

from rlserve.engine.decoder import cpu_program, linear
from rlserve.engine.decoder.linear import PACK_FROM, Linear, can_pack

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
