"""Decoding as CUDA graphs: a step of one token a sequence, the draw of the next token included, is one launch.

    numpy plan ──► pad to a bucket ──► two copies into fixed memory
                                                  │
                               ┌── replay ────────▼───────────────────────────────┐
                               │   last tokens ──► embedding … logits ──► draw    │
                               │        ▲                                  │      │
                               └────────┼──────────────────────────────────┼──────┘
                                        └──────────────────────────────────┤
                           nobody waits until the tokens are read ◄────────┘

There is a graph for each bucket of batch sizes. They are captured at the first use, the largest first, so that the
smaller ones find their memory in the pool that they share. A graph holds addresses and no numbers: weights that are
updated in place need no new capture, and memory that is freed does.

Legend: S sequences, B the size of a bucket, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.attention.device_paged import DevicePagedAttention
from rlserve.engine.decoder.decoder import Decoder
from rlserve.engine.device.transfer import upload
from rlserve.engine.kernels.base import Draw, SamplingBatch
from rlserve.engine.kernels.device_draw import DeviceDraw
from rlserve.engine.kernels.triton_kernels import draw
from rlserve.engine.runner.last_tokens import LastTokens

logger = logging.getLogger(__name__)

_NO_SLOT = -1
Computed = tuple[torch.Tensor, torch.Tensor]
"""Logits [B, V], and what was drawn, packed [3, B]: always the same memory."""


def batch_buckets(largest: int) -> list[int]:
    """The batch sizes that have a graph: close together where a row more is costly, and the largest itself."""
    steps = [1, 2, 4, 8, *range(16, min(largest, 512), 16), *range(512, largest, 64)]
    return [*(size for size in steps if size < largest), largest]


def pad_layout(layout: StepLayout, size: int) -> StepLayout:
    """A step of one token a sequence with ``size`` sequences: those added write nowhere and look at one token."""

    def padded(array: NDArray[np.int32], value: int) -> NDArray[np.int32]:
        return np.pad(array, (0, size - len(array)), constant_values=value)

    return replace(
        layout,
        token_ids=np.pad(layout.token_ids, (0, size - layout.num_tokens)),
        positions=padded(layout.positions, 0),
        cache_slots=np.pad(layout.cache_slots, (0, size - layout.num_tokens), constant_values=_NO_SLOT),
        query_starts=np.arange(size + 1, dtype=np.int32),
        table_rows=padded(layout.table_rows, 0),
    )


class Recorder(Protocol):
    """What turns a function without arguments into something that does the same to the same memory, faster."""

    def record(self, function: Callable[[], Computed]) -> tuple[Computed, Callable[[], None]]:
        """The memory of the results, and what fills it anew."""
        ...


class CudaRecorder:
    """Captures CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], Computed]) -> tuple[Computed, Callable[[], None]]:
        """Run ``function`` once, so that its programs are compiled and its libraries ready, and then capture it."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = function()
        return results, graph.replay


@dataclass(frozen=True, kw_only=True, eq=False)
class _Graph:
    results: Computed
    replay: Callable[[], None]


class DecodeGraphs:
    """The graphs of one model; ``make_recorder`` is called for each set of them."""

    def __init__(
        self,
        decoder: Decoder,
        attention: DevicePagedAttention,
        last_tokens: LastTokens,
        *,
        max_num_sequences: int,
        table_width: int,
        device: torch.device,
        make_recorder: Callable[[], Recorder] = CudaRecorder,
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._last_tokens = last_tokens
        self._device = device
        self._make_recorder = make_recorder
        self._buckets = batch_buckets(max_num_sequences)
        self._table_width = table_width
        self._layout_memory = torch.zeros(
            attention.num_words(max_num_sequences, table_width), dtype=torch.int32, device=device
        )
        self._input_memory = torch.zeros(3 * (max_num_sequences + 4), dtype=torch.int32, device=device)
        self._places_B = torch.arange(max_num_sequences, dtype=torch.int32, device=device)
        self._graphs: dict[int, _Graph] = {}

    def replay(self, layout: StepLayout, batch: SamplingBatch) -> torch.Tensor:
        """Compute a step of the token drawn last for each row of the layout, and draw the next ones as if every
        token may be drawn: see ``drawn``. Returns logits [S, V], which the next step overwrites."""
        if not self._graphs:
            self._capture_all()
        num_sequences = layout.num_sequences
        size = next(bucket for bucket in self._buckets if bucket >= num_sequences)
        self._fill(layout, size, batch.temperature, batch.uniform)
        graph = self._graphs[size]
        graph.replay()
        logits_BV, self._packed_3B = graph.results
        self._num_sequences = num_sequences
        return logits_BV[:num_sequences]

    def drawn(self) -> Draw:
        """What the last replay drew."""
        return DeviceDraw(self._packed_3B, self._num_sequences)

    def forget(self) -> None:
        """Drop the graphs, and the memory of their pool with them: tensors that they know are freed."""
        self._graphs.clear()

    def _capture_all(self) -> None:
        start = time.perf_counter()
        recorder = self._make_recorder()
        for size in reversed(self._buckets):
            self._graphs[size] = self._capture(recorder, size)
        logger.info("captured %d CUDA graphs in %.1f s", len(self._buckets), time.perf_counter() - start)

    def _capture(self, recorder: Recorder, size: int) -> _Graph:
        nothing = np.zeros(0, dtype=np.int32)
        empty = StepLayout(
            token_ids=nothing.astype(np.int64),
            positions=nothing,
            cache_slots=nothing.astype(np.int64),
            query_starts=np.zeros(1, dtype=np.int32),
            table_rows=nothing,
            block_tables=np.zeros((1, self._table_width), dtype=np.int32),
        )
        rows_B, temperature_B, uniform_B = self._fill(empty, size, np.ones(0), np.ones(0))

        def compute() -> Computed:
            logits_BV = self._decoder.forward(self._last_tokens.of(rows_B), self._places_B[:size])
            packed_3B = draw(logits_BV, self._places_B[:size], temperature_B, uniform_B)
            self._last_tokens.put(rows_B, packed_3B[0])
            return logits_BV, packed_3B

        results, replay = recorder.record(compute)
        return _Graph(results=results, replay=replay)

    def _fill(
        self, layout: StepLayout, size: int, temperature: NDArray[np.floating], uniform: NDArray[np.floating]
    ) -> list[torch.Tensor]:
        """Write a step into the memory that the graph of its size reads; rows of the sequence table, temperatures and
        uniforms."""
        self._attention.begin_captured_step(pad_layout(layout, size), self._layout_memory)
        num_added = size - layout.num_sequences
        rows = np.pad(layout.table_rows, (0, num_added), constant_values=self._last_tokens.spare_row)
        numbers = [
            np.pad(array.astype(np.float32), (0, num_added), constant_values=1.0) for array in (temperature, uniform)
        ]
        return upload([rows, *numbers], self._device, self._input_memory)
