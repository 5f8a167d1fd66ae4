"""What rank 0 tells the others of a step, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.parallel.orders import BlockTable, StepPlan

BLOCK_SIZE, NUM_ROWS, WIDTH = 4, 6, 5


def _plan(
    tables: NDArray[np.int32],
    spans: dict[int, tuple[int, int]],
    block_copies: dict[int, int],
    ids: Sequence[int] = (),
) -> StepPlan:
    """A step of the positions [start, end) of some rows."""
    rows = np.array(list(spans), dtype=np.int32)
    lengths = np.array([end - start for start, end in spans.values()], dtype=np.int32)
    positions = np.concatenate([np.arange(start, end, dtype=np.int32) for start, end in spans.values()])
    blocks = tables[np.repeat(rows, lengths), positions // BLOCK_SIZE].astype(np.int64)
    return StepPlan(
        layout=StepLayout(
            token_ids=np.arange(len(positions), dtype=np.int64) + 90_000,
            positions=positions,
            cache_slots=blocks * BLOCK_SIZE + positions % BLOCK_SIZE,
            query_starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            table_rows=rows,
            block_tables=tables,
            num_decoding=int((lengths == 1).sum()),
        ),
        last_rows=np.cumsum(lengths) - 1,
        block_copies=block_copies,
        adapter_ids=np.array(ids, dtype=np.int64),
    )


def _assert_same(found: StepPlan, sent: StepPlan) -> None:
    for name in ("token_ids", "positions", "cache_slots", "query_starts", "table_rows"):
        array, expected = getattr(found.layout, name), getattr(sent.layout, name)
        assert array.dtype == expected.dtype
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(found.last_rows, sent.last_rows)
    np.testing.assert_array_equal(found.adapter_ids, sent.adapter_ids)
    assert found.layout.num_decoding == sent.layout.num_decoding
    assert found.block_copies == sent.block_copies
    for row, end in zip(sent.layout.table_rows, sent.layout.query_starts[1:], strict=True):
        width = int(sent.layout.positions[end - 1]) // BLOCK_SIZE + 1
        np.testing.assert_array_equal(
            found.layout.block_tables[row, :width], sent.layout.block_tables[row, :width], "what the row may read"
        )


@given(data=st.data())
def test_the_others_know_what_rank_0_knows(data: st.DataObject) -> None:
    leading, following = (BlockTable(NUM_ROWS, WIDTH, BLOCK_SIZE) for _ in range(2))
    tables = np.zeros((NUM_ROWS, WIDTH), dtype=np.int32)
    blocks = st.integers(0, 2**31 // BLOCK_SIZE - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        for row, column in data.draw(st.lists(st.tuples(st.integers(0, NUM_ROWS - 1), st.integers(0, WIDTH - 1)))):
            tables[row, column] = data.draw(blocks)
        spans = {}
        for row in data.draw(st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, unique=True)):
            start = data.draw(st.integers(0, WIDTH * BLOCK_SIZE - 1))
            spans[row] = (start, data.draw(st.integers(start + 1, WIDTH * BLOCK_SIZE)))
        ids = st.lists(st.integers(0, 2**31 - 1), min_size=len(spans), max_size=len(spans))
        copies = data.draw(st.dictionaries(blocks, blocks))
        plan = _plan(tables, spans, copies, data.draw(st.just([]) | ids))
        words = leading.pack(plan)
        assert words.dtype == np.int32
        _assert_same(following.unpack(words), plan)


def test_a_decoding_step_says_nothing_of_blocks_that_are_known() -> None:
    table = BlockTable(NUM_ROWS, WIDTH, BLOCK_SIZE)
    tables = np.arange(NUM_ROWS * WIDTH, dtype=np.int32).reshape(NUM_ROWS, WIDTH) + 1
    first, second, third = (
        len(table.pack(_plan(tables, dict.fromkeys(range(NUM_ROWS), (position, position + 1)), {})))
        for position in (6, 7, 8)
    )
    assert first - second == 2 * 2 * NUM_ROWS, "two blocks of each row are new"
    assert third - second == 2 * NUM_ROWS, "the step into a third block tells of it alone"
