"""KV caches of int8 and fp8: alike on all backends, close to the cache of floats, and smaller."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_builders import VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of

from rlserve.engine import Engine, SampleOutput
from rlserve.engine.attention.factory import attention_class
from rlserve.engine.config import KvCacheDtype
from rlserve.engine.device.backend import Backend
from rlserve.engine.models import read_model_spec
from rlserve.errors import UserError

BACKENDS = ("cpu", "torch")
CACHES = (("cpu", "int8"), ("torch", "int8"), ("torch", "fp8"))
LARGEST_ERRORS = {"int8": (0.02, 0.3), "fp8": (0.08, 1.0)}
"""Mean and maximum; fp8 has three bits of mantissa."""


def _sampled(engine: Engine) -> list[SampleOutput]:
    rng = random.Random(5)
    prompts = [rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 70)) for _ in range(40)]
    common = rng.choices(range(VOCAB_SIZE), k=24)
    prompts += [common + prompt for prompt in prompts[:20]]
    requests = [
        make_request(str(index), prompt, n=1 + index % 2, max_tokens=20, seed=index)
        for index, prompt in enumerate(prompts)
    ]
    outputs = run(engine, requests)
    return [sample for request in requests for sample in outputs[request.id].samples]


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize(("backend", "dtype"), CACHES)
def test_log_probs_stay_close_to_those_of_the_float_cache(
    family: str, backend: str, dtype: str, tmp_path: Path
) -> None:
    """Compared while the sampled tokens are the same, with sharing, chunks and preemption."""
    save_model(tmp_path, family, initializer_range=0.15)
    engine = make_engine(
        tmp_path, num_blocks=48, max_num_batched_tokens=60, attention_backend=backend, kv_cache_dtype=dtype
    )
    found, exact = _sampled(engine), _sampled(make_engine(tmp_path, attention_backend=backend))
    assert engine.stats().num_preemptions > 0
    assert engine.stats().prefix_hits > 0
    differences = [
        abs(quantised - plain)
        for ours, theirs in zip(found, exact, strict=True)
        for place, (quantised, plain) in enumerate(zip(ours.log_probs, theirs.log_probs, strict=False))
        if ours.token_ids[: place + 1] == theirs.token_ids[: place + 1]
    ]
    mean, maximum = LARGEST_ERRORS[dtype]
    assert len(differences) > 500
    assert 0 < np.mean(differences) < mean
    assert max(differences) < maximum


def test_both_backends_quantise_alike(tmp_path: Path) -> None:
    save_model(tmp_path, "qwen3", initializer_range=0.15)
    compiled, plain = (
        _sampled(make_engine(tmp_path, attention_backend=backend, kv_cache_dtype="int8")) for backend in BACKENDS
    )
    pairs = [
        abs(one - two)
        for first, second in zip(compiled, plain, strict=True)
        if first.token_ids == second.token_ids
        for one, two in zip(first.log_probs, second.log_probs, strict=True)
    ]
    assert len(pairs) > 500
    assert np.mean(pairs) < 1e-3  # a number halfway between two integers may go either way


@pytest.mark.parametrize(("backend", "dtype"), CACHES)
def test_a_quantised_cache_holds_nearly_twice_the_blocks_of_bfloat16(
    backend: Backend, dtype: KvCacheDtype, tmp_path: Path
) -> None:
    spec = read_model_spec(save_model(tmp_path, "qwen3", head_dim=128))
    wide = attention_class(backend).block_bytes(spec, 16, torch.bfloat16)
    narrow = attention_class(backend, dtype).block_bytes(spec, 16, torch.bfloat16)
    assert narrow * 1.9 < wide < narrow * 2


@pytest.mark.parametrize(("backend", "dtype"), CACHES)
def test_keys_and_values_of_nothing_but_zeros_have_a_scale(backend: str, dtype: str, tmp_path: Path) -> None:
    save_model(tmp_path)
    weights = weights_of("qwen3", 0)
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            tensor.zero_()
    found = []
    for kv_cache_dtype in (dtype, "auto"):
        engine = make_engine(tmp_path, attention_backend=backend, kv_cache_dtype=kv_cache_dtype)
        engine.load_weights(1, weights)
        found.append(run(engine, [make_request("0", range(1, 30), max_tokens=5)])["0"].samples[0])
    assert found[0].log_probs == pytest.approx(found[1].log_probs, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.usefixtures("fp8_as_on_a_gpu")
def test_the_gpu_backend_gives_the_log_probs_of_plain_pytorch(dtype: str, tmp_path: Path) -> None:
    from triton_device import DEVICE

    save_model(tmp_path, "qwen3", initializer_range=0.15, num_hidden_layers=1)
    requests = [
        make_request("long", range(1, 30), max_tokens=3, n=2, temperature=0.0),
        make_request("short", [7, 8], max_tokens=6, temperature=0.0),
    ]
    found, expected = (
        run(
            make_engine(
                tmp_path, attention_backend=backend, device=device, kv_cache_dtype=dtype, max_num_batched_tokens=16
            ),
            requests,
        )
        for backend, device in (("triton", DEVICE.type), ("torch", "cpu"))
    )
    for request in requests:
        for ours, theirs in zip(found[request.id].samples, expected[request.id].samples, strict=True):
            assert ours.token_ids == theirs.token_ids
            assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-3)


@pytest.mark.parametrize(
    ("backend", "dtype", "able"),
    [("cpu", "fp8", "torch, triton"), ("flash", "int8", "cpu, torch, triton"), ("flash", "fp8", "torch, triton")],
)
def test_a_backend_without_it_is_refused(backend: Backend, dtype: KvCacheDtype, able: str) -> None:
    message = f"kv_cache_dtype={dtype} is not for attention_backend={backend}, only for {able}$"
    with pytest.raises(UserError, match=message):
        attention_class(backend, dtype)
