"""Tables of cosines and sines for rotary positions.

Legend: P positions, F frequencies, half of a head's components.
"""

from __future__ import annotations

import torch


def table_of_frequencies(frequencies_F: torch.Tensor, num_positions: int, factor: float = 1.0) -> torch.Tensor:
    """[P, 2, F] float32: cosines, then sines, of every position, times ``factor``. The numbers of a position are the
    same, to the bit, in a table of any length."""
    angles_PF = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies_F)
    table_P2F = torch.stack([angles_PF.cos(), angles_PF.sin()], dim=1)
    return table_P2F if factor == 1.0 else table_P2F * factor
