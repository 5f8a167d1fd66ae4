"""What a step computes, as the scheduler hands it to the runner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.sequences.sequence import RequestState, Sequence


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokens [start, end) of a sequence in prefill."""

    sequence: Sequence
    start: int
    end: int
    completes: bool
    """The last token is among them, so the next one can be sampled."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScheduledStep:
    """What the next step computes: the decoding rows, then the chunks."""

    decode_rows: NDArray[np.intp]
    chunks: tuple[Chunk, ...]
    block_copies: dict[int, int]
    """Target block -> source block, to be done before anything is written."""
    started: tuple[RequestState, ...]
    """Requests that got their first row."""

    @property
    def is_empty(self) -> bool:
        """Nothing to compute."""
        return len(self.decode_rows) == 0 and not self.chunks
