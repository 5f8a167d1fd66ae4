"""How many KV blocks an engine holds: as told, by default, or by the memory that a GPU has left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model

from rlserve.engine import EngineConfig
from rlserve.engine.device.memory import MemoryLeft
from rlserve.engine.kv_cache.sizing import count_blocks, is_measured, largest_draw, largest_step
from rlserve.engine.runner import model_runner
from rlserve.errors import ConfigurationError, UserError

LEFT = MemoryLeft(free_bytes=10_000, step_bytes=2_000)


@pytest.mark.parametrize(
    ("settings", "num_blocks"),
    [
        ({"num_blocks": 7}, 7),
        ({"num_blocks": 7, "kv_cache_bytes": 100}, 7),
        ({"kv_cache_bytes": 950}, 9),
        ({}, 72),
        ({"gpu_memory_fraction": 0.5}, 40),
        ({"gpu_memory_fraction": 1.0}, 80),
    ],
)
def test_what_is_told_comes_before_what_is_measured(settings: dict[str, Any], num_blocks: int) -> None:
    config = EngineConfig(**settings)
    assert count_blocks(config, 100, 512, LEFT) == num_blocks
    is_told = "num_blocks" in settings or "kv_cache_bytes" in settings
    assert is_measured(config, torch.device("cuda"), 1) != is_told
    assert not is_measured(config, torch.device("cpu"), 1)
    assert not is_measured(config, torch.device("cuda"), 2)


def test_no_more_is_taken_than_sequences_and_prefixes_can_use() -> None:
    config = EngineConfig(max_num_sequences=3)
    assert count_blocks(config, 100, 33, LEFT) == 2 * 3 * 3
    assert count_blocks(replace(config, kv_cache_bytes=8_000), 100, 33, LEFT) == 80


def test_without_a_measurement_there_is_a_default() -> None:
    assert count_blocks(EngineConfig(), 2**20, 512, None) == 256


@pytest.mark.parametrize(
    ("settings", "left", "message"),
    [
        (
            {"kv_cache_bytes": 99},
            LEFT,
            "^kv_cache_bytes=99 is less than one block of 16 tokens, which takes 100 bytes$",
        ),
        ({}, MemoryLeft(free_bytes=2_050, step_bytes=2_000), "has 2050 bytes free, and a step takes 2000: of the rest"),
        ({}, MemoryLeft(free_bytes=100, step_bytes=2_000), "gpu_memory_fraction=0.9 is less than one block"),
    ],
)
def test_no_room_for_a_block_is_an_error(settings: dict[str, Any], left: MemoryLeft, message: str) -> None:
    with pytest.raises(UserError, match=message):
        count_blocks(EngineConfig(**settings), 100, 512, left)


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_a_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="gpu_memory_fraction"):
        EngineConfig(gpu_memory_fraction=fraction)


@pytest.mark.parametrize(
    ("max_num_batched_tokens", "max_num_sequences", "max_model_len", "num_tokens", "num_sequences"),
    [(64, 16, 256, 64, 16), (50, 16, 256, 50, 16), (64, 4, 9, 36, 4), (8, 16, 256, 8, 8), (1, 1, 2, 1, 1)],
)
def test_the_largest_step_has_as_much_of_everything_as_fits(
    max_num_batched_tokens: int, max_num_sequences: int, max_model_len: int, num_tokens: int, num_sequences: int
) -> None:
    config = EngineConfig(
        max_num_batched_tokens=max_num_batched_tokens, max_num_sequences=max_num_sequences, block_size=4
    )
    layout = largest_step(config, max_model_len)
    assert (layout.num_tokens, layout.num_sequences) == (num_tokens, num_sequences)
    lengths = np.diff(layout.query_starts)
    assert lengths.sum() == num_tokens
    assert lengths.min() >= 1
    assert lengths.max() <= max_model_len
    assert layout.positions.tolist() == [position for length in lengths for position in range(length)]
    assert layout.cache_slots.max() < 4


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_an_engine_is_measured_and_then_serves_with_the_blocks_that_fit(
    backend: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with a memory of our own in place of a GPU's."""
    steps = []

    def measured(device: torch.device, compute: Callable[[], None]) -> MemoryLeft:
        compute()
        steps.append(device.type)
        return MemoryLeft(free_bytes=300_000, step_bytes=100_000)

    monkeypatch.setattr(model_runner, "measure_memory", measured)
    monkeypatch.setattr(model_runner, "is_measured", lambda *arguments: True)
    save_model(tmp_path, family)
    engine = make_engine(
        tmp_path, num_blocks=None, attention_backend=backend, max_num_batched_tokens=8, max_num_sequences=4
    )
    block_bytes = 2 * engine.spec.num_layers * 4 * engine.spec.kv_size * 4
    assert steps == ["cpu"]
    assert engine.stats().num_blocks == 180_000 // block_bytes
    assert engine.max_model_len == min(256, 4 * engine.stats().num_blocks)
    assert run(engine, [make_request("0", range(1, 12), max_tokens=3)])["0"].finished


def test_the_largest_draw_sorts_every_row_and_tells_what_it_kept() -> None:
    batch = largest_draw(5)
    assert batch.size == 5
    assert batch.wants_kept
    assert not batch.keeps_all
