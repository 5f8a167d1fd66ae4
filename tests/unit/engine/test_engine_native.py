"""The compiled kernels against the plain PyTorch ones, and the engine without a compiler."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model
from instruction_sets import OLDER, instructions_up_to, only_on_x86

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.attention.cpu_kernel import CpuKernelAttention
from rlserve.engine.attention.factory import attention_class
from rlserve.engine.kernels.factory import create_kernels
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.rope import rotation_table
from rlserve.errors import UserError
from rlserve.native.library import NativeBuildError, load_library

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _spec(num_heads: int, num_kv_heads: int, head_dim: int, **changes: Any) -> ModelSpec:
    return ModelSpec(
        architecture="test",
        vocab_size=10,
        hidden_size=10,
        intermediate_size=10,
        num_layers=2,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope_theta=100.0,
        rope_scaling=None,
        max_position=512,
        tied_embeddings=False,
        eos_token_ids=(),
        **changes,
    )


def _layout(lengths: list[tuple[int, int]], block_size: int, num_blocks: int, seed: int) -> StepLayout:
    """Sequences given as (tokens cached before, tokens of the step), each in blocks of its own, scattered
    over the cache; the same seed gives the same blocks."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(num_blocks).reshape(4, -1)
    tables = np.zeros((len(lengths) + 1, num_blocks // 4), dtype=np.int32)
    positions, slots = [], []
    for row, (start, count) in enumerate(lengths, start=1):
        end = start + count
        tables[row] = blocks[row]
        own = np.arange(start, end, dtype=np.int32)
        positions.append(own)
        slots.append(tables[row, own // block_size].astype(np.int64) * block_size + own % block_size)
    return StepLayout(
        token_ids=np.zeros(sum(count for _, count in lengths), dtype=np.int64),
        positions=np.concatenate(positions),
        cache_slots=np.concatenate(slots),
        query_starts=np.cumsum([0, *(count for _, count in lengths)]).astype(np.int32),
        table_rows=np.arange(1, len(lengths) + 1, dtype=np.int32),
        block_tables=tables,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size", [4, 16, 40, 200])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 16), (6, 2, 20), (8, 1, 64), (20, 1, 80)])
def test_attention_equals_the_reference_over_several_steps(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    _compare_attention(_spec(num_heads, num_kv_heads, head_dim), block_size, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size", [4, 16, 100])
@pytest.mark.parametrize("window", [0, 1, 5, 16, 130])
def test_attention_with_window_cap_scale_and_offset_equals_the_reference(
    window: int, block_size: int, dtype: torch.dtype
) -> None:
    changes = {
        "layer_windows": (0, window),
        "local_rope_theta": 30.0,
        "attention_softcap": 1.5,
        "attention_scale": 0.1,
        "norm_offset": 1.0,
    }
    _compare_attention(_spec(6, 2, 20, **changes), block_size, dtype)
    _compare_attention(_spec(4, 4, 16, layer_windows=(0, window)), block_size, dtype)


@only_on_x86
@pytest.mark.parametrize("older", OLDER)
def test_attention_of_older_processors_equals_the_reference(older: str) -> None:
    with instructions_up_to(older):
        for dtype in (torch.float32, torch.bfloat16):
            _compare_attention(_spec(6, 2, 20, layer_windows=(0, 16)), 4, dtype)
            _compare_attention(_spec(20, 1, 80), 40, dtype)


@only_on_x86
@pytest.mark.parametrize("older", OLDER)
def test_a_model_of_bfloat16_is_a_program_on_older_processors_and_alike_in_any_batch(
    older: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path, initializer_range=0.1)
    requests = [make_request(str(index), range(1, 4 + 7 * index), n=2, max_tokens=8, seed=index) for index in range(5)]
    newest = run(make_engine(folder, dtype="bfloat16"), requests[3:4])["3"].samples
    with instructions_up_to(older):
        together = run(make_engine(folder, dtype="bfloat16"), requests)
        for request in requests:
            alone = run(make_engine(folder, dtype="bfloat16"), [request])[request.id]
            assert alone.samples == together[request.id].samples
    for sample, other in zip(together["3"].samples, newest, strict=True):
        assert sample.log_probs[0] == pytest.approx(other.log_probs[0], abs=0.05)


def _compare_attention(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> None:
    num_blocks, num_heads, head_dim = 256, spec.num_heads, spec.head_dim
    rotation = rotation_table(spec, 512)
    backends = [
        attention_class(name)(spec, rotation, num_blocks=num_blocks, block_size=block_size, dtype=dtype)
        for name in ("cpu", "torch")
    ]
    generator = torch.Generator().manual_seed(0)
    norms = [(torch.randn(head_dim, generator=generator) / 2).to(dtype) for _ in range(2)]
    for lengths in ([(0, 150), (0, 7), (0, 1)], [(150, 1), (7, 33), (1, 1)], [(151, 1), (40, 1), (2, 20)]):
        layout = _layout(lengths, block_size, num_blocks, seed=1)
        num_tokens = layout.num_tokens
        qkv = torch.randn(num_tokens, (num_heads + 2 * spec.num_kv_heads) * head_dim, generator=generator).to(dtype)
        results = []
        for backend in backends:
            out = torch.zeros(num_tokens, num_heads * head_dim, dtype=dtype)
            backend.begin_step(layout)
            backend.attend(1, qkv.clone(), *norms, out)
            results.append(out.float())
        assert torch.allclose(*results, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_stale_values_behind_the_end_of_a_sequence_do_not_leak_in() -> None:
    spec = _spec(2, 2, 16)
    backend = CpuKernelAttention(spec, rotation_table(spec, 64), num_blocks=4, block_size=8, dtype=torch.float32)
    for lengths, value in (([(0, 8)], torch.nan), ([(0, 3)], 1.0)):
        out = torch.zeros(lengths[0][1], 32)
        backend.begin_step(_layout(lengths, 8, 4, seed=0))
        backend.attend(0, torch.full((lengths[0][1], 96), value), None, None, out)
    assert torch.allclose(out, torch.ones(3, 32), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 48, 67, 1024])
def test_norms_and_activation_equal_the_reference(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    hidden, update = (torch.randn(70, size, generator=generator).to(dtype) * 2 for _ in range(2))
    weight = torch.randn(size, generator=generator).to(dtype)
    gate_up = torch.randn(70, 2 * size, generator=generator).to(dtype) * 5
    results = []
    for name in ("cpu", "torch"):
        kernels = create_kernels(name)
        residual, in_place, *empty = hidden.clone(), hidden.clone(), *(torch.empty_like(hidden) for _ in range(4))
        normed, summed, silu, gelu = empty
        kernels.rms_norm(hidden, weight, normed, 1e-6)
        kernels.rms_norm(in_place, weight, in_place, 1e-6, 1.0)
        kernels.add_rms_norm(residual, update, weight, summed, 1e-6)
        kernels.silu_mul(gate_up, silu)
        kernels.gelu_tanh_mul(gate_up, gelu)
        results.append([residual, in_place, normed, summed, silu, gelu])
    for compiled, plain in zip(*results, strict=True):
        assert torch.allclose(compiled.float(), plain.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_two_threads_give_the_tokens_of_one(tmp_path: Path) -> None:
    save_model(tmp_path)
    requests = [make_request(str(index), range(1, 2 + index), n=2, max_tokens=10, seed=index) for index in range(8)]
    single = run(make_engine(tmp_path), requests)
    torch.set_num_threads(2)
    double = run(make_engine(tmp_path), requests)
    for request in requests:
        pairs = zip(double[request.id].samples, single[request.id].samples, strict=True)
        assert all(two.token_ids == one.token_ids for two, one in pairs)


def test_one_openmp_runtime_is_shared_with_torch() -> None:
    load_library()
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {Path(line.split()[-1]).resolve() for line in maps if "gomp" in line}
    assert len(runtimes) == 1


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine whose compiler always fails, with an empty cache."""
    compiler = tmp_path / "broken-compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho out of order >&2\nexit 1\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("RLSERVE_CACHE", str(tmp_path))
    load_library.cache_clear()
    yield compiler
    load_library.cache_clear()


def test_without_a_compiler_auto_serves_with_torch_after_one_line_of_log(
    no_compiler: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        engine = make_engine(tmp_path / "model", attention_backend="auto")
    (record,) = [record for record in caplog.records if record.name.startswith("rlserve")]
    assert "out of order" in record.getMessage()
    assert run(engine, [make_request("0", (1, 2, 3))])["0"].finished
    assert not list(tmp_path.rglob("*.so")), "nothing is left of the failed build"


def test_without_a_compiler_the_backend_asked_for_by_name_is_refused(no_compiler: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    with pytest.raises(UserError, match="attention_backend=cpu needs a C\\+\\+ compiler"):
        make_engine(tmp_path / "model", attention_backend="cpu")
    no_compiler.unlink()
    with pytest.raises(NativeBuildError, match="broken-compiler"):
        load_library()


def test_a_library_is_compiled_once_and_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSERVE_CACHE", str(tmp_path))
    monkeypatch.setattr("rlserve.native.library._FLAGS", ("-O0", "-march=native", "-std=c++20", "-fPIC", "-Wno-psabi"))
    load_library.cache_clear()
    load_library()
    (library,) = tmp_path.rglob("*.so")
    times = [library.stat().st_mtime_ns]
    load_library.cache_clear()
    load_library()
    times.append(library.stat().st_mtime_ns)
    assert all(first == second for first, second in pairwise(times))
    load_library.cache_clear()
