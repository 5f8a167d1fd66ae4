"""Which tokens of a step have which adapter."""

from __future__ import annotations

import numpy as np
import torch

from rlserve.engine.adapters.adapter import NO_ADAPTER_ID, AdapterTokens, StepAdapters
from rlserve.engine.attention.base import StepLayout
from rlserve.engine.device.transfer import to_device
from rlserve.engine.sequences.table import SequenceTable


def step_adapters(layout: StepLayout, rows: SequenceTable, device: torch.device) -> StepAdapters | None:
    """Those of a step; None where no token has one."""
    ids_S = rows.adapter_ids[layout.table_rows]
    if not ids_S.any():
        return None
    ids_T = np.repeat(ids_S, np.diff(layout.query_starts))
    groups = []
    for adapter_id in np.unique(ids_S[ids_S != NO_ADAPTER_ID]).tolist():
        adapter = rows.sequence(int(layout.table_rows[np.argmax(ids_S == adapter_id)])).owner.adapter
        assert adapter is not None
        tokens_n = np.flatnonzero(ids_T == adapter_id)
        is_all = len(tokens_n) == len(ids_T)
        groups.append(AdapterTokens(adapter=adapter, tokens_n=None if is_all else to_device(tokens_n, device)))
    return StepAdapters(groups)
