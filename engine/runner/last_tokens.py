"""The token drawn last for each row of the sequence table, on the device: the input of the next decoding step, which
can be launched before the host has seen it.

Legend: B rows of a step.
"""

from __future__ import annotations

import torch


class LastTokens:
    """One token id for each row, and a spare row that takes what nobody wants."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.spare_row = num_rows
        self._token_ids = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)

    def of(self, rows_B: torch.Tensor) -> torch.Tensor:
        """[B] int32 the last tokens of some rows."""
        return self._token_ids.index_select(0, rows_B)

    def put(self, rows_B: torch.Tensor, token_ids_B: torch.Tensor) -> None:
        """Note what was drawn."""
        self._token_ids.index_copy_(0, rows_B.long(), token_ids_B)
