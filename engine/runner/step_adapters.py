"""Which tokens of a step have which adapter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.adapters.adapter import NO_ADAPTER_ID, Adapter, AdapterTokens, StepAdapters
from rlserve.engine.attention.base import StepLayout
from rlserve.engine.device.transfer import to_device
from rlserve.engine.sequences.table import SequenceTable


def adapters_of_rows(layout: StepLayout, rows: SequenceTable, device: torch.device) -> StepAdapters | None:
    """Those of a step; None where no token has one."""
    ids_S = rows.adapter_ids[layout.table_rows]
    adapters: dict[int, Adapter] = {}
    for adapter_id in np.unique(ids_S[ids_S != NO_ADAPTER_ID]).tolist():
        adapter = rows.sequence(int(layout.table_rows[np.argmax(ids_S == adapter_id)])).owner.adapter
        assert adapter is not None
        adapters[adapter_id] = adapter
    return step_adapters(layout, ids_S, adapters, device)


def step_adapters(
    layout: StepLayout, ids_S: NDArray[np.int64], adapters: Mapping[int, Adapter], device: torch.device
) -> StepAdapters | None:
    """The same from the adapter of each sequence, by its id."""
    if not ids_S.any():
        return None
    ids_T = np.repeat(ids_S, np.diff(layout.query_starts))
    groups, num_rows = [], 0
    rows_T = np.full(len(ids_T), np.count_nonzero(ids_T))
    for adapter_id in np.unique(ids_S[ids_S != NO_ADAPTER_ID]).tolist():
        tokens_n = np.flatnonzero(ids_T == adapter_id)
        rows_T[tokens_n] = num_rows + np.arange(len(tokens_n))
        num_rows += len(tokens_n)
        groups.append(AdapterTokens(adapter=adapters[adapter_id], tokens_n=to_device(tokens_n, device)))
    is_one = len(groups) == 1 and num_rows == len(ids_T)
    return StepAdapters(ids_S, groups, None if is_one else to_device(rows_T, device))
