"""The engine on a GPU: every backend against plain PyTorch, graphs, weight updates, memory."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from trainer_samples import FAMILIES, VOCABULARY, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.engine import Engine, EngineConfig, Request, RequestOutput, SamplingParams
from rlserve.engine.kernels.device_draw import DeviceDraw

pytestmark = pytest.mark.gpu

needs_flash = pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash-attn")


def make_engine(folder: str | Path, **changes: Any) -> Engine:
    settings: dict[str, Any] = {
        "device": "cuda",
        "dtype": "float32",
        "block_size": 16,
        "num_blocks": 96,
        "max_num_sequences": 12,
        "max_num_batched_tokens": 48,
        "max_model_len": 128,
    }
    return Engine(str(folder), EngineConfig(**(settings | changes)))


def requests(number: int = 24, **sampling: Any) -> list[Request]:
    """Prompts of many lengths, so that chunks and decoding meet in one step."""
    random = np.random.default_rng(5)
    lengths = random.integers(1, 60, number)
    return [
        Request(
            id=str(index),
            prompt_token_ids=tuple(random.integers(0, VOCABULARY, length).tolist()),
            sampling=SamplingParams(
                **{"max_tokens": 20, "ignore_eos": True, "n": 1 + index % 2, "seed": index} | sampling
            ),
        )
        for index, length in enumerate(lengths)
    ]


def serve(engine: Engine, work: list[Request]) -> dict[str, RequestOutput]:
    for request in work:
        engine.add(request)
    outputs: dict[str, RequestOutput] = {}
    while engine.has_work:
        outputs |= {output.request_id: output for output in engine.step()}
    engine.check_integrity()
    return outputs


def assert_same(found: dict[str, RequestOutput], expected: dict[str, RequestOutput], *, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for request_id, output in expected.items():
        for sample, wanted in zip(found[request_id].samples, output.samples, strict=True):
            assert sample.token_ids == wanted.token_ids
            np.testing.assert_allclose(sample.log_probs, wanted.log_probs, atol=tolerance)
            np.testing.assert_allclose(sample.behaviour_log_probs, wanted.behaviour_log_probs, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_tokens_of_the_cpu(family: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, family)
    expected = serve(make_engine(folder, device="cpu", attention_backend="torch"), requests(temperature=0.0))
    for backend in ("torch", "triton"):
        assert_same(
            serve(make_engine(folder, attention_backend=backend), requests(temperature=0.0)), expected, tolerance=1e-4
        )


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"repetition_penalty": 1.3}],
    ids=str,
)
def test_graphs_change_no_draw(sampling: dict[str, Any], tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    eager, graphs = (make_engine(folder, cuda_graphs=cuda_graphs) for cuda_graphs in (False, True))
    assert_same(serve(graphs, requests(**sampling)), serve(eager, requests(**sampling)), tolerance=1e-5)
    assert graphs._runner._graphs is not None
    assert graphs._runner._graphs._graphs


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        {"stop_token_ids": tuple(range(0, VOCABULARY, 16)), "temperature": 0.8},
        {"stop_token_ids": tuple(range(0, VOCABULARY, 16)), "top_p": 0.9, "top_k": 40},
        {"stop_token_ids": tuple(range(0, VOCABULARY, 16)), "frequency_penalty": 0.5},
    ],
    ids=str,
)
def test_overlapped_scheduling_changes_no_output(sampling: dict[str, Any], cuda_graphs: bool, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    settings = {"cuda_graphs": cuda_graphs, "num_blocks": 24}  # so few that samples are preempted
    plain, overlapped = (make_engine(folder, overlap_scheduling=overlaps, **settings) for overlaps in (False, True))
    assert make_engine(folder)._runner.overlaps, "it is the default on a GPU"
    assert_same(serve(overlapped, requests(**sampling)), serve(plain, requests(**sampling)), tolerance=1e-4)
    assert plain.stats().num_dropped_tokens == 0
    if "frequency_penalty" not in sampling:
        assert overlapped.stats().num_dropped_tokens > 0


def test_reading_a_draw_waits_for_no_later_work() -> None:
    packed_3B = torch.arange(6, dtype=torch.int32, device="cuda").view(3, 2)
    torch.cuda.synchronize()
    draw = DeviceDraw(packed_3B)
    torch.cuda._sleep(2_000_000_000)
    packed_3B.zero_()
    assert draw.read().token_ids.tolist() == [0, 1]
    assert not torch.cuda.current_stream().query(), "the work behind the draw is still to be done"


def test_weights_updated_in_place_reach_the_graphs(tmp_path: Path) -> None:
    first = save_tiny_model(tmp_path / "first")
    model = AutoModelForCausalLM.from_pretrained(first)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3).add_(0.01)
    model.save_pretrained(tmp_path / "second")
    engine = make_engine(first)
    serve(engine, requests(temperature=0.0))
    engine.load_weights(1, {name: tensor.detach() for name, tensor in model.state_dict().items()})
    expected = serve(make_engine(tmp_path / "second"), requests(temperature=0.0))
    assert_same(serve(engine, requests(temperature=0.0)), expected, tolerance=1e-5)


def test_released_memory_is_free_and_comes_back(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    engine = make_engine(folder, num_blocks=40_000)
    expected = serve(engine, requests(temperature=0.0))
    held = torch.cuda.memory_reserved()
    cache_bytes = 40_000 * engine._runner._attention.block_bytes(engine.spec, 16, torch.float32)
    engine.release_memory()
    assert held - torch.cuda.memory_reserved() >= cache_bytes
    engine.restore_memory()
    assert_same(serve(engine, requests(temperature=0.0)), expected, tolerance=1e-5)


@pytest.mark.parametrize("block_size", [16, 64])
def test_bfloat16_log_probabilities_are_near_those_of_float32(block_size: int, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, hidden_size=256)
    wide = serve(make_engine(folder, block_size=block_size), requests(max_tokens=1, temperature=0.0))
    narrow = serve(
        make_engine(folder, block_size=block_size, dtype="bfloat16"), requests(max_tokens=1, temperature=0.0)
    )
    differences = [
        abs(narrow[request_id].samples[0].log_probs[0] - output.samples[0].log_probs[0])
        for request_id, output in wide.items()
        if narrow[request_id].samples[0].token_ids == output.samples[0].token_ids
    ]
    assert len(differences) > len(wide) / 2
    assert max(differences) < 0.1


@needs_flash
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_flash_attention_agrees_with_triton(cuda_graphs: bool, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, hidden_size=256)
    work = requests(max_tokens=1, temperature=0.0)
    settings = {"dtype": "bfloat16", "block_size": 256, "max_model_len": 256, "cuda_graphs": cuda_graphs}
    flash, triton = (
        serve(make_engine(folder, attention_backend=backend, **settings), work) for backend in ("flash", "triton")
    )
    for request in work:
        one, other = flash[request.id].samples[0], triton[request.id].samples[0]
        if one.token_ids == other.token_ids:
            assert abs(one.log_probs[0] - other.log_probs[0]) < 0.05


def test_a_group_of_samples_differs_and_the_same_request_repeats(tmp_path: Path) -> None:
    engine = make_engine(save_tiny_model(tmp_path))
    request = Request(
        id="group", prompt_token_ids=(1, 2, 3), sampling=SamplingParams(n=8, max_tokens=16, ignore_eos=True, seed=9)
    )
    first, again = (serve(engine, [request])["group"].samples for _ in range(2))
    assert [sample.token_ids for sample in first] == [sample.token_ids for sample in again]
    assert all(one.token_ids != other.token_ids for one, other in pairwise(first))


def _prompt_scores(engine: Engine) -> NDArray[np.float32]:
    outputs = serve(engine, requests(temperature=0.0, prompt_log_probs=0))
    return np.array([value for index in range(len(outputs)) for value in outputs[str(index)].prompt_log_probs[1:]])


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8"])
def test_a_quantised_cache_gives_what_it_gives_on_the_cpu(kv_cache_dtype: str, tmp_path: Path) -> None:
    if kv_cache_dtype == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not know fp8")
    folder = save_tiny_model(tmp_path)
    expected = _prompt_scores(
        make_engine(folder, device="cpu", attention_backend="torch", kv_cache_dtype=kv_cache_dtype)
    )
    found = _prompt_scores(make_engine(folder, kv_cache_dtype=kv_cache_dtype))
    plain = _prompt_scores(make_engine(folder))
    # A number halfway between two that can be stored may go either way.
    assert np.abs(found - expected).mean() < 1e-3
    assert 0 < np.abs(found - plain).mean() < 0.1


def test_float16_rounds_less_than_bfloat16(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    exact, half, brain = (
        _prompt_scores(make_engine(folder, dtype=dtype)) for dtype in ("float32", "float16", "bfloat16")
    )
    assert np.abs(half - exact).mean() < np.abs(brain - exact).mean() < 0.1


def test_the_cache_is_as_large_as_the_memory_has_room_for(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    free_bytes, _ = torch.cuda.mem_get_info()
    engine = make_engine(folder, num_blocks=None, max_num_sequences=48, gpu_memory_fraction=2e-5)
    block_bytes = 2 * engine.spec.num_layers * 16 * engine.spec.kv_size * 4
    assert 1e-5 * free_bytes < engine.stats().num_blocks * block_bytes < 2e-5 * free_bytes
    serve(engine, requests())
    wide = make_engine(folder, num_blocks=None)
    assert wide.stats().num_blocks == 2 * 12 * 128 // 16, "no more than the sequences can use"
