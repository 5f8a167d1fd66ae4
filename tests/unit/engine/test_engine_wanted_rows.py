"""The last layer of a program is computed of the rows alone whose next token is wanted: to the bit as of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import VOCAB_SIZE, make_engine, save_model

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.runner.model_runner import ModelRunner

_NUM_TOKENS = 40


def _runner(folder: Path, dtype: str, **changes: Any) -> ModelRunner:
    settings = {"attention_backend": "cpu", "block_size": 16, "max_num_sequences": _NUM_TOKENS} | changes
    runner = make_engine(folder, dtype=dtype, deterministic=True, **settings)._runner
    assert isinstance(runner, ModelRunner)
    return runner


def _layout(num_sequences: int) -> StepLayout:
    """Prompts of equal length, each in blocks of its own."""
    length = _NUM_TOKENS // num_sequences
    tables = np.arange(3 * num_sequences, dtype=np.int32).reshape(num_sequences, 3)
    positions_T = np.tile(np.arange(length, dtype=np.int32), num_sequences)
    blocks_T = tables[np.repeat(np.arange(num_sequences), length), positions_T // 16]
    return StepLayout(
        token_ids=np.random.default_rng(5).integers(VOCAB_SIZE, size=_NUM_TOKENS),
        positions=positions_T,
        cache_slots=blocks_T.astype(np.int64) * 16 + positions_T % 16,
        query_starts=np.arange(num_sequences + 1, dtype=np.int32) * length,
        table_rows=np.arange(num_sequences, dtype=np.int32),
        block_tables=tables,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("wanted", [[39], [7, 19, 39], []])
def test_rows_that_are_wanted_and_the_others_afterwards_are_as_those_of_a_whole_step(
    tmp_path: Path, family: str, dtype: str, wanted: list[int]
) -> None:
    runner = _runner(save_model(tmp_path, family), dtype)
    layout = _layout(2)
    whole_TV = runner.forward(layout, np.arange(_NUM_TOKENS), {}).clone()
    found_RV = runner.forward(layout, np.array(wanted, dtype=np.int64), {}).clone()
    assert torch.equal(found_RV, whole_TV[wanted])
    for first, end in ((0, 11), (11, _NUM_TOKENS)):
        assert torch.equal(runner.logits_of(first, end), whole_TV[first:end])


def test_it_is_so_with_rounded_numbers_and_with_queries_that_end_within_a_panel(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3", head_dim=12)
    runner = _runner(folder, "bfloat16", weight_dtype="int8", kv_cache_dtype="int8")
    layout, wanted = _layout(2), [3, 4, 39]
    whole_TV = runner.forward(layout, np.arange(_NUM_TOKENS), {}).clone()
    assert torch.equal(runner.forward(layout, np.array(wanted), {}), whole_TV[wanted])
    assert torch.equal(runner.logits_of(0, _NUM_TOKENS), whole_TV)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_are_written_alike_together_and_one_by_one(tmp_path: Path, dtype: str) -> None:
    """Whole blocks of a prompt are turned around together; what begins within one is not."""
    together, by_parts = (_runner(save_model(tmp_path, "qwen3", head_dim=32), dtype) for _ in range(2))
    layout = _layout(1)
    expected_V = together.forward(layout, np.array([_NUM_TOKENS - 1]), {})[0].clone()
    for first, end in ((0, 5), (5, 31), (31, _NUM_TOKENS)):
        part = StepLayout(
            token_ids=layout.token_ids[first:end],
            positions=layout.positions[first:end],
            cache_slots=layout.cache_slots[first:end],
            query_starts=np.array([0, end - first], dtype=np.int32),
            table_rows=layout.table_rows,
            block_tables=layout.block_tables,
        )
        found_V = by_parts.forward(part, np.array([end - first - 1]), {})[0]
    assert torch.equal(found_V, expected_V)
