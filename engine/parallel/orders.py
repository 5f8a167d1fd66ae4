"""What rank 0 orders the others to do: an operation and its arguments, as 32-bit words. Pure.

A step is planned by rank 0 alone. The others get its layout, and of the table of blocks what has changed since the
last step: each rank keeps the same copy of the table.

Legend: T tokens, S sequences, R rows whose next token is wanted, C copied blocks, U changed entries of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.attention.base import StepLayout


class Order(IntEnum):
    """What the others are to do, with its arguments. ``names`` are the places of weights in the model's list."""

    STEP = 0
    """Compute a step: the words of :class:`StepPlan`."""
    LOGITS = 1
    """Logits of the tokens [first, end) of that step."""
    LOAD_FOLDER = 2
    PUT_WEIGHTS = 3
    """(names), then the whole tensors, one behind the other."""
    WEIGHTS_CHANGED = 4
    KEEP_WEIGHTS = 5
    """(names), then the whole tensors, one behind the other."""
    SWAP_STAGED_WEIGHTS = 6
    DROP_STAGED_WEIGHTS = 7
    PUT_CHANGES = 8
    """(names, numbers of elements), then all indices, and all values."""
    KEEP_CHANGES = 9
    TAKE_BACK_CHANGES = 10
    GATHER_WEIGHTS = 11
    """(names): their parts, one behind the other."""
    GATHER_STAGED_WEIGHTS = 12
    """(names): likewise."""
    RELEASE_WEIGHTS = 13
    RESTORE_WEIGHTS = 14
    RELEASE_KV_CACHE = 15
    RESTORE_KV_CACHE = 16
    LOAD_ADAPTER = 17
    """(number, places and ranks), then the matrices: see ``sent_adapters.py``."""
    FORGET_ADAPTERS = 18
    """(numbers)"""
    CLOSE = 19


@dataclass(frozen=True, kw_only=True, eq=False)
class StepPlan:
    """All that a rank needs to compute a step."""

    layout: StepLayout
    last_rows: NDArray[np.int64]
    """[R]"""
    block_copies: Mapping[int, int]
    """Target block -> source block."""
    adapter_ids: NDArray[np.int64]
    """[S]; empty where nobody has an adapter."""


class BlockTable:
    """The table of blocks as all ranks know it. Rank 0 packs with it, and the others unpack with theirs."""

    def __init__(self, num_rows: int, width: int, block_size: int) -> None:
        self._table = np.zeros((num_rows, width), dtype=np.int32)
        self._block_size = block_size

    def pack(self, plan: StepPlan) -> NDArray[np.int32]:
        """The words of a step; what they say of the table is taken note of."""
        layout, rows = plan.layout, plan.layout.table_rows
        width = int(layout.positions.max()) // self._block_size + 1  # what lies behind is undefined
        fresh = layout.block_tables[rows, :width]
        sequences, columns = np.nonzero(fresh != self._table[rows, :width])
        blocks = fresh[sequences, columns]
        places = rows[sequences] * self._table.shape[1] + columns
        self._table.reshape(-1)[places] = blocks
        sizes = (
            layout.num_decoding,
            layout.num_tokens,
            layout.num_sequences,
            len(plan.last_rows),
            len(plan.block_copies),
            len(places),
            len(plan.adapter_ids),
        )
        arrays: tuple[NDArray[Any], ...] = (
            np.array(sizes),
            layout.token_ids,
            layout.positions,
            layout.cache_slots,
            layout.query_starts,
            rows,
            plan.last_rows,
            np.array(list(plan.block_copies), dtype=np.int32),
            np.array(list(plan.block_copies.values()), dtype=np.int32),
            places,
            blocks,
            plan.adapter_ids,
        )
        return np.concatenate(arrays).astype(np.int32)

    def unpack(self, words: NDArray[np.int32]) -> StepPlan:
        """The step that :meth:`pack` made the words of. Its table of blocks is this one."""
        num_decoding, num_tokens, num_sequences, num_rows, num_copies, num_changed, num_ids = words[:7].tolist()
        lengths = [*[num_tokens] * 3, num_sequences + 1, num_sequences, num_rows, *[num_copies] * 2, *[num_changed] * 2]
        token_ids, positions, slots, starts, rows, last_rows, targets, sources, places, blocks, ids = np.split(
            words[7:], np.cumsum(lengths)
        )
        assert len(ids) == num_ids
        self._table.reshape(-1)[places] = blocks
        return StepPlan(
            layout=StepLayout(
                token_ids=token_ids.astype(np.int64),
                positions=positions,
                cache_slots=slots.astype(np.int64),
                query_starts=starts,
                table_rows=rows,
                block_tables=self._table,
                num_decoding=num_decoding,
            ),
            last_rows=last_rows.astype(np.int64),
            block_copies=dict(zip(targets.tolist(), sources.tolist(), strict=True)),
            adapter_ids=ids.astype(np.int64),
        )
