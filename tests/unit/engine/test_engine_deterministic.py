"""Deterministic mode: tokens and log-probabilities are the same, bit for bit, whatever a request is served with."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model
from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.engine import Engine, Request, RequestOutput
from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.config import EngineConfig
from rlserve.engine.decoder.linear import Linear, RowBlockLinear
from rlserve.errors import UserError

pytestmark = BOTH_WAYS

BACKENDS = ("cpu", "torch")
LARGE = {"hidden_size": 256, "intermediate_size": 768, "initializer_range": 0.1}
"""With weights that are packed and others that are not."""


def _requests(num_requests: int) -> list[Request]:
    """Every second prompt starts with a common beginning."""
    rng = random.Random(2)
    beginning = rng.choices(range(VOCAB_SIZE), k=30)
    prompts = [rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 60)) for _ in range(num_requests)]
    return [
        make_request(
            str(index),
            beginning + prompt if index % 2 else prompt,
            n=1 + index % 3,
            seed=index,
            temperature=(0.0, 1.0, 0.7)[index % 3],
            top_p=0.9,
            max_tokens=16,
        )
        for index, prompt in enumerate(prompts)
    ]


def _each_alone(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    return {request.id: run(engine, [request])[request.id] for request in requests}


def _assert_equal(found: dict[str, RequestOutput], expected: dict[str, RequestOutput]) -> None:
    assert found.keys() == expected.keys()
    for request_id, output in found.items():
        assert output.error is None
        assert output.samples == expected[request_id].samples


@pytest.mark.parametrize(
    ("family", "dtype", "backend"),
    [
        *product(("llama", "gemma2", "gemma3", "qwen3_moe"), ("float32", "bfloat16"), ("cpu",)),
        *product(("llama", "gemma2", "gemma3", "qwen3_moe"), ("float32",), ("torch",)),
        ("llama", "bfloat16", "torch"),  # slow, and the other families differ in nothing that depends on the type
    ],
)
def test_alone_equals_together_with_sharing_chunks_and_preemption(
    family: str, dtype: str, backend: str, tmp_path: Path
) -> None:
    save_model(tmp_path, family, **LARGE)
    common: dict[str, Any] = {"dtype": dtype, "attention_backend": backend, "deterministic": True}
    requests = _requests(9)
    alone = make_engine(tmp_path, enable_prefix_caching=False, max_num_batched_tokens=512, **common)
    together = make_engine(tmp_path, num_blocks=36, max_num_batched_tokens=37, **common)

    found = run(together, requests)

    stats = together.stats()
    assert stats.num_preemptions > 0
    assert stats.num_partial_chunks > 0
    assert stats.prefix_hits > 0
    _assert_equal(found, _each_alone(alone, requests))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_by_the_error_function_is_deterministic_too(backend: str, tmp_path: Path) -> None:
    """Rows of 97 numbers begin anywhere in a vector, and the last of a tensor are computed one by one."""
    save_model(tmp_path, "llama", hidden_act="gelu", intermediate_size=97)
    engine = make_engine(tmp_path, attention_backend=backend, deterministic=True)
    requests = _requests(7)
    _assert_equal(run(engine, requests), _each_alone(engine, requests))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_of_int8_is_deterministic_too(backend: str, folder: Path) -> None:
    common: dict[str, Any] = {"attention_backend": backend, "deterministic": True, "kv_cache_dtype": "int8"}
    requests = _requests(10)
    found = run(make_engine(folder, num_blocks=42, max_num_batched_tokens=37, **common), requests)
    _assert_equal(found, _each_alone(make_engine(folder, enable_prefix_caching=False, **common), requests))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3", **LARGE)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, RequestOutput]:
    engine = make_engine(folder, dtype="float32", deterministic=True, enable_prefix_caching=False)
    return _each_alone(engine, _requests(20))


@settings(max_examples=10, deadline=None)
@given(
    chosen=st.permutations(range(20)),
    num_chosen=st.integers(1, 20),
    num_blocks=st.integers(40, 90),
    max_num_batched_tokens=st.integers(3, 200),
    max_num_sequences=st.integers(1, 40),
    steps_between=st.integers(0, 5),
)
def test_any_batch_chunking_and_order_gives_the_same_bits(
    folder: Path,
    expected: dict[str, RequestOutput],
    chosen: list[int],
    num_chosen: int,
    num_blocks: int,
    max_num_batched_tokens: int,
    max_num_sequences: int,
    steps_between: int,
) -> None:
    requests = [_requests(20)[index] for index in chosen[:num_chosen]]
    engine = make_engine(
        folder,
        dtype="float32",
        deterministic=True,
        num_blocks=num_blocks,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_sequences=max_num_sequences,
    )
    found = {}
    for request in requests:
        engine.add(request)
        for _ in range(steps_between):
            found |= {output.request_id: output for output in engine.step()}
    found |= run(engine)
    _assert_equal(found, {request.id: expected[request.id] for request in requests})


def test_without_it_bits_do_depend_on_the_batch_where_products_are_not_our_own(folder: Path) -> None:
    """Else the other tests could not fail."""
    assert not _is_alike_in_any_batch(folder, dtype="float32", attention_backend="torch")


def test_a_program_is_deterministic_unasked(folder: Path) -> None:
    assert _is_alike_in_any_batch(folder, dtype="float32", attention_backend="cpu")


def _is_alike_in_any_batch(folder: Path, **config: Any) -> bool:
    requests = _requests(20)
    together = run(make_engine(folder, **config), requests)
    alone = _each_alone(make_engine(folder, enable_prefix_caching=False, **config), requests)
    return all(together[request.id].samples == alone[request.id].samples for request in requests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 24), (96, 1024), (512, 256), (640, 3072)])
def test_products_in_row_blocks_are_right_and_alike_in_any_company(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (
        torch.randn(shape, generator=generator).to(dtype),
        torch.randn(shape[0], generator=generator).to(dtype),
    )
    x = torch.randn(150, shape[1], generator=generator).to(dtype)
    product, plain = RowBlockLinear(weight, bias), Linear(weight, bias)
    product.weight_changed()
    plain.weight_changed()
    whole = product(x, x.new_empty(150, shape[0]))
    exact = plain(x, x.new_empty(150, shape[0]))
    assert torch.allclose(whole.float(), exact.float(), rtol=1e-2, atol=1e-3 if dtype is torch.float32 else 1.0)
    for first, end in ((0, 1), (31, 33), (5, 37), (149, 150), (70, 150)):
        part = product(x[first:end], x.new_empty(end - first, shape[0]))
        assert torch.equal(part, whole[first:end])


def test_a_backend_that_cannot_is_refused() -> None:
    with pytest.raises(UserError, match="deterministic=true is only for attention_backend cpu and torch"):
        AttentionBackend.separate_tokens(object())  # type: ignore[arg-type]


def test_it_is_off_unless_asked_for() -> None:
    assert not EngineConfig().deterministic
