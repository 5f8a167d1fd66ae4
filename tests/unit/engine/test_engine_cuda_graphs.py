"""Decoding as graphs, with a recorder that runs what it recorded: padding, fixed memory and draws are tested
anywhere, capturing itself in ``tests/gpu``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_builders import BOTH_WAYS, make_engine, make_request, run, save_model
from triton_device import DEVICE

from rlserve.engine import Engine
from rlserve.engine.attention.base import StepLayout
from rlserve.engine.attention.triton_paged import TritonPagedAttention
from rlserve.engine.runner.cuda_graphs import Computed, DecodeGraphs, batch_buckets, pad_layout
from rlserve.engine.runner.last_tokens import LastTokens


class RunningRecorder:
    """Runs the function again at each replay, and puts the results where those of the first run were."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def record(self, function: Callable[[], Computed]) -> tuple[Computed, Callable[[], None]]:
        results = function()
        size = len(results[0])
        self._events.append(f"capture {size}")

        def replay() -> None:
            self._events.append(f"replay {size}")
            for kept, found in zip(results, function(), strict=True):
                kept.copy_(found)

        return results, replay


def engine_with_graphs(folder: Path, events: list[str]) -> Engine:
    engine = make_engine(folder, attention_backend="triton", device=DEVICE.type, max_num_sequences=3, cuda_graphs=False)
    runner = engine._runner
    assert isinstance(runner._attention, TritonPagedAttention)
    runner._last_tokens = LastTokens(3, DEVICE)
    runner._graphs = DecodeGraphs(
        runner._decoder,
        runner._attention,
        runner._last_tokens,
        max_num_sequences=3,
        table_width=engine._table.block_tables.shape[1],
        device=DEVICE,
        make_recorder=lambda: RunningRecorder(events),
    )
    return engine


REQUESTS = [
    make_request("greedy", [5, 6, 7], temperature=0.0, max_tokens=5),
    make_request("drawn", [8], temperature=0.7, seed=3, max_tokens=3),
    make_request("narrow", [9, 10, 11, 12, 13], top_k=3, seed=4, max_tokens=2),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), hidden_size=32, intermediate_size=32, num_hidden_layers=1)


@BOTH_WAYS
def test_an_engine_with_graphs_gives_the_tokens_of_plain_pytorch(folder: Path) -> None:
    events: list[str] = []
    found = run(engine_with_graphs(folder, events), REQUESTS)
    expected = run(make_engine(folder, attention_backend="torch", device="cpu", max_num_sequences=3), REQUESTS)
    assert events == [
        *("capture 3", "capture 2", "capture 1"),  # the largest first
        *("replay 3", "replay 2", "replay 1", "replay 1"),
    ]
    for request in REQUESTS:
        sample, wanted = found[request.id].samples[0], expected[request.id].samples[0]
        assert sample.token_ids == wanted.token_ids
        np.testing.assert_allclose(sample.log_probs, wanted.log_probs, atol=1e-4)
        np.testing.assert_allclose(sample.behaviour_log_probs, wanted.behaviour_log_probs, atol=1e-4)


def test_released_memory_takes_its_graphs_along(folder: Path) -> None:
    events: list[str] = []
    engine = engine_with_graphs(folder, events)
    request = make_request("greedy", [5, 6], temperature=0.0, max_tokens=2)
    first = run(engine, [request])
    engine.release_memory()
    engine.restore_memory()
    again = run(engine, [request])
    assert again["greedy"].samples == first["greedy"].samples
    assert events == 2 * ["capture 3", "capture 2", "capture 1", "replay 1"]


def test_buckets_end_with_the_largest_batch() -> None:
    assert batch_buckets(1) == [1]
    assert batch_buckets(10) == [1, 2, 4, 8, 10]
    assert batch_buckets(64) == [1, 2, 4, 8, 16, 32, 48, 64]
    assert batch_buckets(700)[-4:] == [512, 576, 640, 700]


def test_rows_that_fill_a_bucket_write_nowhere_and_see_one_token() -> None:
    layout = StepLayout(
        token_ids=np.array([7, 8]),
        positions=np.array([4, 9], dtype=np.int32),
        cache_slots=np.array([20, 41]),
        query_starts=np.array([0, 1, 2], dtype=np.int32),
        table_rows=np.array([5, 2], dtype=np.int32),
        block_tables=np.zeros((6, 3), dtype=np.int32),
    )
    padded = pad_layout(layout, 4)
    assert padded.token_ids.tolist() == [7, 8, 0, 0]
    assert padded.positions.tolist() == [4, 9, 0, 0]
    assert padded.cache_slots.tolist() == [20, 41, -1, -1]
    assert padded.query_starts.tolist() == [0, 1, 2, 3, 4]
    assert padded.table_rows.tolist() == [5, 2, 0, 0]
